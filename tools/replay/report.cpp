#include "replay/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <span>

#include "common/host.hpp"
#include "common/statistics.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::tools {
namespace {

constexpr std::size_t kSamplesInJson = 2000;

// Of all calls of one kind together, so long calls count for more than short ones.
double gigabytes_per_second(const KindMeasurement& measured) {
  double microseconds = 0;
  for (const double run_us : measured.run_us) microseconds += run_us;
  return microseconds == 0 ? 0 : measured.bytes / microseconds * 1e-3;
}

std::string table(const StreamResult& run, bool on_gpu) {
  std::string text = fmt::format(
      "schedule {}\n"
      "{:<14}{:>8}{:>10}  {:^26}{}  {:^29}{:>8}{:>8}\n"
      "{:<14}{:>8}{:>10}{:>10}{:>9}{:>9}{}{:>11}{:>10}{:>10}{:>8}{:>8}\n",
      name(run.schedule), "", "", "", "host time, us per call", on_gpu ? "    launch" : "",
      "run time, us per layer", "", "run", "calls", "number", "tokens", "p50", "mean", "p99",
      on_gpu ? "       p50" : "", "p50", "mean", "p99", "GB/s", "/copy");
  for (int i = 0; i < kCallKinds; ++i) {
    const KindMeasurement& measured = run.kinds[i];
    if (measured.calls == 0) continue;
    const Summary host = summarize(measured.host_us);
    const Summary work = summarize(measured.run_us);
    text += fmt::format(
        "{:<14}{:>8}{:>10}{:>10.1f}{:>9.1f}{:>9.1f}{}{:>11.1f}{:>10.1f}{:>10.1f}{:>8.1f}{:>8.2f}\n",
        name(static_cast<CallKind>(i)), measured.calls, measured.tokens, host.p50, host.mean,
        host.p99, on_gpu ? fmt::format("{:>10.1f}", median(measured.launch_us)) : "", work.p50,
        work.mean, work.p99, gigabytes_per_second(measured), median(measured.copy_ratio));
  }
  return text + "\n";
}

// Host time of each call and the mean of its layers together.
std::vector<double> host_and_run_us(const KindMeasurement& measured, std::int64_t layers) {
  std::vector<double> sums;
  for (std::int64_t call = 0; call < measured.calls; ++call) {
    const auto first = measured.run_us.begin() + call * layers;
    const double run_us = std::accumulate(first, first + layers, 0.0);
    sums.push_back(measured.host_us[call] + run_us / static_cast<double>(layers));
  }
  return sums;
}

// In the order of their history, whatever the order they were asked for in.
constexpr Schedule kHistory[] = {Schedule::kBlockList, Schedule::kSequenceGrid, Schedule::kFlat};

constexpr std::string_view kComparisonNote =
    "block-list    \"before\": what SGLang's kernel needed until its pull request 10552\n"
    "sequence-grid \"after\": what it has needed since\n"
    "flat          \"shortconv\"\n"
    "All three run this library's kernels. Host time is spent once per call, however many layers\n"
    "follow; an engine that knows the lengths on the host saves the part called lengths (p50).\n"
    "Device time is one layer, /copy its ratio to a copy of the same bytes. Decodes, verifies and\n"
    "commits have no schedule: their rows differ by chance alone.\n\n";

std::string comparison(std::span<const StreamResult> runs, std::int64_t layers) {
  std::string text = fmt::format(
      "{:<14}{:<14}{:^18}{:>9}{:^20}{:^18}{:>8}\n"
      "{:<14}{:<14}{:>9}{:>9}{:>9}{:>11}{:>9}{:>9}{:>9}{:>8}\n",
      "us per call", "", "     host time", "lengths", "    device time", "  host + device",
      "device", "calls", "schedule", "p50", "mean", "p50", "p50", "mean", "p50", "mean", "/copy");
  for (int i = 0; i < kCallKinds; ++i) {
    for (const Schedule schedule : kHistory) {
      const auto run = std::ranges::find(runs, schedule, &StreamResult::schedule);
      if (run == runs.end() || run->kinds[i].calls == 0) continue;
      const KindMeasurement& measured = run->kinds[i];
      const Summary host = summarize(measured.host_us);
      const Summary work = summarize(measured.run_us);
      const Summary sum = summarize(host_and_run_us(measured, layers));
      text += fmt::format(
          "{:<14}{:<14}{:>9.1f}{:>9.1f}{:>9.1f}{:>11.1f}{:>9.1f}{:>9.1f}{:>9.1f}{:>8.2f}\n",
          name(static_cast<CallKind>(i)), name(schedule), host.p50, host.mean,
          median(measured.lengths_us), work.p50, work.mean, sum.p50, sum.mean,
          median(measured.copy_ratio));
    }
  }
  return text + std::string(kComparisonNote);
}

// Tokens by which a verified step brings a request forward.
double tokens_per_step(const ReplayReport& report) {
  const StreamOutline& outline = report.outline;
  return outline.verified_steps == 0 ? 0
                                     : static_cast<double>(outline.accepted_tokens) /
                                           static_cast<double>(outline.verified_steps);
}

std::string serving_lines(const ReplayReport& report) {
  const SchedulerOptions& scheduler = report.scheduler;
  const StreamOutline& outline = report.outline;
  std::string text;
  if (!scheduler.tree.empty()) {
    text += fmt::format(
        "drafts     {}, accepted with probability {}: {} steps of {} rows, {:.2f} tokens each\n",
        scheduler.tree.is_chain() ? fmt::format("chains of {}", scheduler.tree.levels())
                                  : fmt::format("trees of {}", scheduler.tree.shape()),
        scheduler.accept, outline.verified_steps, scheduler.tree.rows(), tokens_per_step(report));
  }
  if (scheduler.prefix_block > 0) {
    text += fmt::format(
        "prefixes   states after every {} prompt tokens in {} slots: {} snapshots, {} requests "
        "begin from one and save {} tokens\n",
        scheduler.prefix_block, scheduler.prefix_slots, outline.snapshots,
        outline.begun_from_snapshots, outline.tokens_of_snapshots);
  }
  return text;
}

std::string verdict(const Verification& verification) {
  if (verification.runs == 0) return "verification: off\n";
  std::string text = fmt::format(
      "verification: {}{} requests in {} {}, {} rows, {} values: {} differ from one pass over the "
      "whole request, {} final states differ from the last inputs, {} outside the fp32 bound "
      "around "
      "fp64 ({:.3f}% correctly rounded); {} failures\n",
      verification.requests,
      verification.requests < verification.asked ? fmt::format(" of {}", verification.asked) : "",
      verification.runs, verification.runs == 1 ? "run" : "runs", verification.rows,
      verification.values, verification.differing_values, verification.differing_states,
      verification.inaccurate_values, 100 * verification.correctly_rounded_share(),
      verification.failures());
  if (!verification.first_failure.empty()) {
    text += fmt::format("first failure: {}\n", verification.first_failure);
  }
  return text;
}

nlohmann::ordered_json to_json(const Summary& summary) {
  return {{"p50", summary.p50}, {"mean", summary.mean}, {"p99", summary.p99}};
}

nlohmann::ordered_json to_json(const StreamResult& run, bool on_gpu, std::int64_t layers) {
  auto kinds = nlohmann::ordered_json::array();
  for (int i = 0; i < kCallKinds; ++i) {
    const KindMeasurement& measured = run.kinds[i];
    if (measured.calls == 0) continue;
    nlohmann::ordered_json kind = {{"kind", name(static_cast<CallKind>(i))},
                                   {"calls", measured.calls},
                                   {"tokens", measured.tokens},
                                   {"host_us", to_json(summarize(measured.host_us))},
                                   {"run_us", to_json(summarize(measured.run_us))},
                                   {"gb_per_s", gigabytes_per_second(measured)},
                                   {"copy_ratio", median(measured.copy_ratio)},
                                   {"run_us_samples", thin_out(measured.run_us, kSamplesInJson)},
                                   {"copy_us_samples", thin_out(measured.copy_us, kSamplesInJson)}};
    if (on_gpu) {
      kind["lengths_us"] = to_json(summarize(measured.lengths_us));
      kind["launch_us"] = to_json(summarize(measured.launch_us));
      kind["host_and_run_us"] = to_json(summarize(host_and_run_us(measured, layers)));
    }
    kinds.push_back(std::move(kind));
  }
  return {{"schedule", name(run.schedule)}, {"kinds", std::move(kinds)}};
}

nlohmann::ordered_json to_json(const Verification& verification) {
  return {{"requests", verification.requests},
          {"requests_asked", verification.asked},
          {"runs", verification.runs},
          {"rows", verification.rows},
          {"values", verification.values},
          {"differing_values", verification.differing_values},
          {"differing_states", verification.differing_states},
          {"inaccurate_values", verification.inaccurate_values},
          {"correctly_rounded_share", verification.correctly_rounded_share()},
          {"failures", verification.failures()}};
}

}  // namespace

std::string to_text(const ReplayReport& report) {
  const LayerConfig& config = report.config;
  const SchedulerOptions& scheduler = report.scheduler;
  std::string text = fmt::format(
      "requests   {} from {}: {} prompt + {} output tokens\n"
      "model      {}{}: {} layers of {} channels, width {}, {}, {}, {} (weights {})\n"
      "scheduler  {} prompt tokens a call, {} running{}{}\n"
      "{}"
      "backend    {} ({}), {}\n\n",
      report.requests, report.source, report.prompt_tokens, report.output_tokens, report.model,
      report.ranks == 1 ? "" : fmt::format(" / {}", report.ranks), config.layers, config.channels,
      config.width, config.activation == Activation::kNone ? "no activation" : "SiLU",
      config.has_bias ? "bias" : "no bias", name(config.dtype), name(config.weight_dtype),
      scheduler.chunk, scheduler.max_running, scheduler.mixed ? ", mixed calls" : "",
      scheduler.draft > 0 ? fmt::format(", {} draft tokens a step", scheduler.draft) : "",
      serving_lines(report), report.backend, report.backend_detail,
      report.on_gpu() ? "driver " + report.host["gpu"]["driver"].get<std::string>()
                      : fmt::format("{} used", report.threads));
  for (const StreamResult& run : report.runs) text += table(run, report.on_gpu());
  if (report.on_gpu() && report.runs.size() > 1) text += comparison(report.runs, config.layers);
  return text + verdict(report.verification);
}

nlohmann::ordered_json to_json(const ReplayReport& report) {
  const LayerConfig& config = report.config;
  auto runs = nlohmann::ordered_json::array();
  for (const StreamResult& run : report.runs) {
    runs.push_back(to_json(run, report.on_gpu(), config.layers));
  }
  nlohmann::ordered_json scheduler = {{"chunk", report.scheduler.chunk},
                                      {"max_running", report.scheduler.max_running},
                                      {"mixed", report.scheduler.mixed},
                                      {"draft", report.scheduler.draft}};
  if (!report.scheduler.tree.empty()) {
    scheduler["tree"] = report.scheduler.tree.shape();
    scheduler["accept"] = report.scheduler.accept;
    scheduler["steps"] = report.outline.verified_steps;
    scheduler["tokens_per_step"] = tokens_per_step(report);
  }
  if (report.scheduler.prefix_block > 0) {
    scheduler["prefix_cache"] = {{"block", report.scheduler.prefix_block},
                                 {"slots", report.scheduler.prefix_slots},
                                 {"snapshots", report.outline.snapshots},
                                 {"requests", report.outline.begun_from_snapshots},
                                 {"tokens", report.outline.tokens_of_snapshots}};
  }
  return {
      {"command", "replay"},
      {"version", library_version()},
      {"arguments", report.arguments},
      {"host", report.host},
      {"workload",
       {{"source", report.source},
        {"requests", report.requests},
        {"prompt_tokens", report.prompt_tokens},
        {"output_tokens", report.output_tokens}}},
      {"model",
       {{"name", report.model},
        {"channels", config.channels},
        {"width", config.width},
        {"layers", config.layers},
        {"activation", name(config.activation)},
        {"bias", config.has_bias},
        {"dtype", name(config.dtype)},
        {"weight_dtype", name(config.weight_dtype)},
        {"tensor_parallel", report.ranks}}},
      {"scheduler", std::move(scheduler)},
      {"backend",
       {{"name", report.backend}, {"detail", report.backend_detail}, {"threads", report.threads}}},
      {"runs", std::move(runs)},
      {"verification", to_json(report.verification)}};
}

}  // namespace shortconv::tools
