#include "bench/table.hpp"

#include <fmt/format.h>

#include "shortconv/capability.hpp"

namespace shortconv::tools::bench {
namespace {

double megabytes(const Row& row) { return static_cast<double>(row.bytes) * 1e-6; }

double gigabytes_per_second(std::int64_t bytes, double us) {
  return static_cast<double>(bytes) / us * 1e-3;
}

std::string cpu_line(const Row& row) {
  return fmt::format(
      "{:<20} {:<13} {:>6} {:>5} {:>8} {:>8.2f} {:>9.1f} {:>8.1f} {:>9.1f} {:>6.1f} {:>6.1f} "
      "{:>6.2f}\n",
      row.shape->name, shortconv::name(row.options.schedule), row.shape->tokens(),
      row.shape->sequences(), row.shape->channels, megabytes(row), row.run_us, row.host_us,
      row.copy_us, gigabytes_per_second(row.bytes, row.run_us),
      gigabytes_per_second(row.bytes, row.copy_us), 1 / row.ratio());
}

std::string gpu_line(const Row& row, bool with_two_reads) {
  const bool kept = row.gpu->mode == CacheMode::kCold && !row.gpu->past_cache;
  std::string line = fmt::format(
      "{:<20} {:<13} {:<5} {:>6} {:>5} {:>8} {:>7.2f} {:>7.2f} {:>7.2f} {:>6.3f} {:>7.2f} "
      "{:>7.2f} {:>9.2f}",
      row.shape->name, shortconv::name(row.options.schedule),
      fmt::format("{}{}", name(row.gpu->mode), kept ? "*" : ""), row.shape->tokens(),
      row.shape->sequences(), row.shape->channels, megabytes(row), row.run_us, row.copy_us,
      row.ratio(), row.run_us - row.copy_us, row.gpu->plan_us, row.gpu->launch_us);
  if (with_two_reads) {
    line += row.gpu->two_reads_us ? fmt::format(" {:>10.2f}", *row.gpu->two_reads_us)
                                  : fmt::format(" {:>10}", "");
  }
  return line + "\n";
}

}  // namespace

std::string_view name(CacheMode mode) { return mode == CacheMode::kCold ? "cold" : "warm"; }

std::string table_header(Columns columns) {
  if (columns == Columns::kCpu) {
    return fmt::format(
        "{:<20} {:<13} {:>6} {:>5} {:>8} {:>8} {:>9} {:>8} {:>9} {:>6} {:>6} {:>6}\n", "case",
        "schedule", "tokens", "seqs", "channels", "MB", "run us", "host us", "copy us", "GB/s",
        "copy", "x copy");
  }
  return fmt::format(
      "{:<20} {:<13} {:<5} {:>6} {:>5} {:>8} {:>7} {:>7} {:>7} {:>6} {:>7} {:>7} {:>9}{}\n", "case",
      "schedule", "mode", "tokens", "seqs", "channels", "MB", "run us", "copy us", "ratio", "+us",
      "plan us", "launch us", columns == Columns::kGpu ? "" : " 2 reads us");
}

std::string table_line(const Row& row, Columns columns) {
  return columns == Columns::kCpu ? cpu_line(row)
                                  : gpu_line(row, columns == Columns::kGpuWithTwoReads);
}

nlohmann::ordered_json to_json(const Row& row) {
  nlohmann::ordered_json json = {{"case", row.shape->name},
                                 {"schedule", shortconv::name(row.options.schedule)},
                                 {"dtype", shortconv::name(row.options.dtype)},
                                 {"state_dtype", shortconv::name(row.options.dtype_of_states())},
                                 {"weight_dtype", shortconv::name(row.options.dtype_of_weights())},
                                 {"width", row.options.width},
                                 {"activation", shortconv::name(row.options.activation)},
                                 {"pitch", row.options.pitch},
                                 {"tokens", row.shape->tokens()},
                                 {"channels", row.shape->channels},
                                 {"sequences", row.shape->sequences()},
                                 {"threads", row.options.threads},
                                 {"bytes", row.bytes},
                                 {"run_us", row.run_us},
                                 {"host_us", row.host_us},
                                 {"copy_us", row.copy_us},
                                 {"gb_per_s", gigabytes_per_second(row.bytes, row.run_us)},
                                 {"copy_gb_per_s", gigabytes_per_second(row.bytes, row.copy_us)},
                                 {"ratio", row.ratio()}};
  if (row.shape->commit_layers > 0) json["layers"] = row.shape->commit_layers;
  if (row.gpu) {
    json.update({{"copy_plus_us", row.run_us - row.copy_us},
                 {"mode", name(row.gpu->mode)},
                 {"bias", row.options.has_bias},
                 {"slots_in_order", row.options.slots_in_order},
                 {"programmatic_launch", row.options.programmatic_launch},
                 {"sets", row.gpu->sets},
                 {"sets_past_cache", row.gpu->past_cache},
                 {"calls_per_graph", row.gpu->calls},
                 {"empty_us", row.gpu->empty_us},
                 {"plan_us", row.gpu->plan_us},
                 {"launch_us", row.gpu->launch_us},
                 {"bare_launch_us", row.gpu->bare_launch_us}});
    if (row.gpu->overlapped_copy_us) json["overlapped_copy_us"] = *row.gpu->overlapped_copy_us;
    if (row.gpu->two_reads_us) json["two_reads_us"] = *row.gpu->two_reads_us;
  }
  return json;
}

}  // namespace shortconv::tools::bench
