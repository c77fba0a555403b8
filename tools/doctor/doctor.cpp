#include "doctor/doctor.hpp"

#include <fmt/format.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <memory>
#include <span>
#include <unordered_map>
#include <unordered_set>

#include "commands.hpp"
#include "common/arguments.hpp"
#include "common/error.hpp"
#include "common/input_file.hpp"
#include "common/output_file.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::tools {
namespace {

using Report = std::array<Diagnosis::Row, kViolations>;
static_assert(sizeof(Report) == sizeof(std::int64_t) * 2 * kViolations);

using Snapshot = std::array<std::int64_t, 3>;  // sequence, token, slot

// A call on sequences [first, last) of the batch, with these rows of its snapshots. It has no
// channels: the report is the same, and no row and no pool has to be there, however large they are.
Report report_of(const Batch& batch, std::int64_t first, std::int64_t last,
                 std::span<const Snapshot> rows) {
  const auto list = [&](const auto& values, DType dtype, std::int64_t count) {
    const void* data = values.data() + first;  // read only, which a view cannot say
    return TensorRef::contiguous(const_cast<void*>(data), dtype, {count});
  };
  constexpr std::int64_t kChannels = 0;
  const std::int64_t sequences = last - first;
  Report report;
  ForwardArgs args;
  args.options.backend = BackendId::kCpu;
  args.x = args.out = TensorRef::contiguous(nullptr, DType::kF32, {batch.tokens, kChannels});
  args.weight = TensorRef::contiguous(nullptr, DType::kF32, {kChannels, batch.width});
  args.pool.state =
      TensorRef::contiguous(nullptr, DType::kF32, {batch.slots, batch.columns, kChannels});
  args.pool.base_column = batch.base_column;
  args.pool.null_slot = batch.null_slot;
  args.sequences.query_start_loc = list(batch.query_start_loc, DType::kI64, sequences + 1);
  args.pool.read_slots = list(batch.read_slots, DType::kI64, sequences);
  if (batch.write_slots) args.pool.write_slots = list(*batch.write_slots, DType::kI64, sequences);
  if (batch.read_offsets)
    args.pool.read_offsets = list(*batch.read_offsets, DType::kI64, sequences);
  if (batch.cache_seqlens) {
    args.pool.cache_seqlens = list(*batch.cache_seqlens, DType::kI64, sequences);
  }
  args.sequences.has_initial_state = list(batch.has_initial_state, DType::kBool, sequences);
  std::vector<Snapshot> snapshots;  // with numbers of this call
  for (const auto& [sequence, token, slot] : rows) {
    if (sequence < first || sequence >= last) {
      snapshots.push_back({-1, token, slot});
    } else {
      snapshots.push_back({sequence - first, token, slot});
    }
  }
  if (!snapshots.empty()) {
    args.pool.snapshots =
        TensorRef::contiguous(snapshots.data(), DType::kI64, {std::ssize(snapshots), 3});
  }
  if (batch.intermediate_slots) {
    args.op = Op::kVerify;
    args.drafts.intermediate_slots = list(*batch.intermediate_slots, DType::kI64, sequences);
    args.drafts.intermediate_states = TensorRef::contiguous(
        nullptr, DType::kF32,
        {batch.intermediate_slot_count, std::max<std::int64_t>(batch.tokens, 1),
         std::max<std::int64_t>(batch.width, 1) - 1, kChannels});
  }
  args.options.violations = TensorRef::contiguous(&report, DType::kI64, {kViolations, 2});
  require(forward(args));
  return report;
}

// What the table says of a sequence.
struct Line {
  std::int64_t begin, end;  // as they stand
  std::int64_t tokens;
  std::int64_t read, write;
  bool skipped, writes;
};

Line line_of(const Batch& batch, std::int64_t sequence) {
  const auto s = static_cast<std::size_t>(sequence);
  const auto usable = [&](std::int64_t slot) {
    return slot >= 0 && slot < batch.slots && slot != batch.null_slot;
  };
  const auto clamped = [&](std::int64_t row) {
    return std::clamp<std::int64_t>(row, 0, batch.tokens);
  };
  Line line{};
  line.begin = batch.query_start_loc[s];
  line.end = batch.query_start_loc[s + 1];
  line.tokens = std::max<std::int64_t>(clamped(line.end) - clamped(line.begin), 0);
  line.read = batch.read_slots[s];
  line.write = !batch.writes_state() ? -1 : batch.write_slots ? (*batch.write_slots)[s] : line.read;
  line.skipped = !usable(line.read);
  line.writes = !line.skipped && line.tokens > 0 && usable(line.write);
  return line;
}

using Writers = std::unordered_map<std::int64_t, std::int64_t>;  // the first writer of a slot

// Marks sequences that read a slot which another one writes, and those that fill a slot of
// snapshots or of intermediate states which another one uses.
void mark_shared(const Batch& batch, const Writers& writers, Diagnosis& diagnosis) {
  const auto mark = [&](std::int64_t sequence, Violation violation) {
    diagnosis.found[static_cast<std::size_t>(sequence)] |= 1u << static_cast<int>(violation);
  };
  std::unordered_map<std::int64_t, std::int64_t> readers;  // how many continue from a slot
  const auto reads = [&](const Line& line, std::int64_t sequence) {
    return !line.skipped && line.tokens > 0 &&
           batch.has_initial_state[static_cast<std::size_t>(sequence)] != 0;
  };
  for (std::int64_t s = 0; s < batch.sequences(); ++s) {
    const Line line = line_of(batch, s);
    if (!reads(line, s)) continue;
    ++readers[line.read];
    const auto writer = writers.find(line.read);
    if (writer == writers.end() || (line.writes && line.write == line.read)) continue;
    mark(s, Violation::kReadSlotWritten);
    diagnosis.written_by[static_cast<std::size_t>(s)] = writer->second;
  }
  std::unordered_set<std::int64_t> snapshots, intermediate;
  for (const auto& [sequence, token, slot] : batch.snapshots) {
    if (sequence < 0 || sequence >= batch.sequences()) continue;
    const Line line = line_of(batch, sequence);
    const bool exists = !line.skipped && line.tokens > 0 && token >= 0 && token <= line.tokens;
    const bool usable = slot >= 0 && slot < batch.slots && slot != batch.null_slot;
    const bool is_final_state = line.writes && slot == line.write;
    if (!exists || !usable || is_final_state) continue;
    if (!snapshots.insert(slot).second) mark(sequence, Violation::kSnapshotSlotShared);
    const auto found = readers.find(slot);
    const std::int64_t own = reads(line, sequence) && line.read == slot ? 1 : 0;
    if (writers.contains(slot) || (found != readers.end() && found->second > own)) {
      mark(sequence, Violation::kSnapshotSlotInUse);
    }
  }
  for (std::int64_t s = 0; batch.intermediate_slots && s < batch.sequences(); ++s) {
    const Line line = line_of(batch, s);
    const std::int64_t slot = (*batch.intermediate_slots)[static_cast<std::size_t>(s)];
    const bool usable =
        slot >= 0 && slot < batch.intermediate_slot_count && slot != batch.null_slot;
    if (line.skipped || line.tokens == 0 || !usable) continue;
    if (!intermediate.insert(slot).second) mark(s, Violation::kIntermediateSlotShared);
  }
}

std::string kind_of(const Batch& batch, const Line& line, std::int64_t sequence) {
  if (line.skipped)
    return line.read >= batch.slots && line.read != batch.null_slot ? "skipped" : "padding";
  return batch.has_initial_state[static_cast<std::size_t>(sequence)] != 0 ? "resumed" : "new";
}

std::string violations_of(const Diagnosis& diagnosis, std::int64_t sequence) {
  std::string text;
  for (int v = 0; v < kViolations; ++v) {
    const auto violation = static_cast<Violation>(v);
    if (!diagnosis.has(sequence, violation)) continue;
    if (!text.empty()) text += ", ";
    text += name(violation);
    if (violation == Violation::kWriteSlotShared) {
      text += fmt::format(" with {}", diagnosis.shared_with[static_cast<std::size_t>(sequence)]);
    }
    if (violation == Violation::kReadSlotWritten) {
      text += fmt::format(" by {}", diagnosis.written_by[static_cast<std::size_t>(sequence)]);
    }
  }
  return text;
}

// The first `limit` sequences, those with violations, and those that write a slot of one of these.
std::vector<bool> shown_sequences(const Diagnosis& diagnosis, std::int64_t limit) {
  std::vector<bool> shown(diagnosis.found.size());
  for (std::size_t s = 0; s < shown.size(); ++s) {
    if (static_cast<std::int64_t>(s) < limit || diagnosis.found[s] != 0) shown[s] = true;
    for (const std::int64_t writer : {diagnosis.shared_with[s], diagnosis.written_by[s]}) {
      if (writer >= 0) shown[static_cast<std::size_t>(writer)] = true;
    }
  }
  return shown;
}

std::string counted(std::int64_t count, std::string_view one, std::string_view many) {
  return fmt::format("{} {}", count, count == 1 ? one : many);
}

std::string table(const Batch& batch, const Diagnosis& diagnosis, std::int64_t limit) {
  std::string text = fmt::format("{:>8}  {:>15}  {:>8}  {:>8}  {:>8}  {:<8}  {}\n", "sequence",
                                 "rows", "tokens", "reads", "writes", "kind", "violations");
  const std::vector<bool> shown = shown_sequences(diagnosis, limit);
  std::int64_t left_out = 0;
  const auto say_left_out = [&] {
    if (left_out > 0) {
      text += fmt::format(
          "{:>8}  {}\n", "...",
          counted(left_out, "sequence without violations", "sequences without violations"));
    }
    left_out = 0;
  };
  for (std::int64_t s = 0; s < batch.sequences(); ++s) {
    if (!shown[static_cast<std::size_t>(s)]) {
      ++left_out;
      continue;
    }
    say_left_out();
    const Line line = line_of(batch, s);
    std::string row =
        fmt::format("{:>8}  {:>15}  {:>8}  {:>8}  {:>8}  {:<8}  {}", s,
                    fmt::format("{}..{}", line.begin, line.end), line.tokens, line.read, line.write,
                    kind_of(batch, line, s), violations_of(diagnosis, s));
    row.erase(row.find_last_not_of(' ') + 1);
    text += row + "\n";
  }
  say_left_out();
  return text;
}

}  // namespace

bool Diagnosis::any() const {
  return std::any_of(report.begin(), report.end(), [](const Row& row) { return row.count > 0; });
}

bool Diagnosis::has(std::int64_t sequence, Violation violation) const {
  return (found[static_cast<std::size_t>(sequence)] >> static_cast<int>(violation) & 1) != 0;
}

Diagnosis diagnose(const Batch& batch) {
  Diagnosis diagnosis;
  diagnosis.report = report_of(batch, 0, batch.sequences(), batch.snapshots);
  const auto sequences = static_cast<std::size_t>(batch.sequences());
  diagnosis.found.resize(sequences);
  diagnosis.shared_with.resize(sequences, -1);
  diagnosis.written_by.resize(sequences, -1);
  if (!diagnosis.any()) return diagnosis;
  // The report counts. Who it counted comes out of calls on one sequence each, and out of who wrote
  // a slot first.
  std::vector<Snapshot> by_sequence = batch.snapshots;
  std::ranges::sort(by_sequence);
  Writers writers;
  for (std::int64_t s = 0; s < batch.sequences(); ++s) {
    const auto at = static_cast<std::size_t>(s);
    const auto its_snapshots =
        std::ranges::equal_range(by_sequence, s, {}, [](const Snapshot& row) { return row[0]; });
    const Report alone = report_of(batch, s, s + 1, its_snapshots);
    for (std::size_t v = 0; v < kViolations; ++v) {
      if (alone[v].count > 0) diagnosis.found[at] |= 1u << v;
    }
    const Line line = line_of(batch, s);
    if (!line.writes) continue;
    const auto [writer, is_first] = writers.emplace(line.write, s);
    if (is_first) continue;
    diagnosis.found[at] |= 1u << static_cast<int>(Violation::kWriteSlotShared);
    diagnosis.shared_with[at] = writer->second;
  }
  mark_shared(batch, writers, diagnosis);
  return diagnosis;
}

std::string doctor_text(const Batch& batch, const Diagnosis& diagnosis, std::int64_t limit) {
  std::string text =
      fmt::format("{}, {}; pool of {}{} of {}, width {}, base_column {}, {}\n\n",
                  counted(batch.sequences(), "sequence", "sequences"),
                  counted(batch.tokens, "token", "tokens"), counted(batch.slots, "slot", "slots"),
                  batch.slots_given ? "" : " (not given: those the batch names)",
                  counted(batch.columns, "column", "columns"), batch.width, batch.base_column,
                  batch.null_slot ? fmt::format("null slot {}", *batch.null_slot) : "no null slot");
  text += table(batch, diagnosis, limit) + "\n";
  if (!diagnosis.any()) return text + "no violations\n";
  for (int v = 0; v < kViolations; ++v) {
    const auto violation = static_cast<Violation>(v);
    const Diagnosis::Row& row = diagnosis.report[static_cast<std::size_t>(v)];
    if (row.count == 0) continue;
    const bool entries =
        violation == Violation::kBoundOutside || violation == Violation::kBoundsDecrease;
    const bool rows = violation == Violation::kSnapshotSlotOutside ||
                      violation == Violation::kSnapshotSlotShared ||
                      violation == Violation::kSnapshotSlotInUse;
    text += fmt::format("{}: {}, first {}\n  {}\n", name(violation),
                        entries ? counted(row.count, "entry", "entries")
                        : rows  ? counted(row.count, "row", "rows")
                                : counted(row.count, "sequence", "sequences"),
                        row.first, describe(violation));
  }
  return text;
}

void add_doctor_command(CLI::App& app) {
  struct Options {
    std::string path;
    std::int64_t limit = 20;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "doctor-batch", "Check the bounds, slots and offsets of a dumped batch (JSON)");
  command
      ->add_option("file", options->path,
                   "A JSON object: query_start_loc, slots, ...; - is standard input")
      ->check(file_name())
      ->required();
  command
      ->add_option("--limit", options->limit, "Sequences to list; those with violations always are")
      ->check(whole_number(0, kMostCount))
      ->capture_default_str();
  command->callback([options] {
    const Batch batch = load_batch(options->path);
    const Diagnosis diagnosis = diagnose(batch);
    write_stdout(doctor_text(batch, diagnosis, options->limit));
    if (!diagnosis.any()) return;
    throw CommandError(kExitFailed, fmt::format("{}: has violations", input_name(options->path)));
  });
}

}  // namespace shortconv::tools
