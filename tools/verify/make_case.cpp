// How random cases come about.
#include <algorithm>
#include <limits>
#include <numeric>
#include <span>

#include "common/random.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/violation.hpp"
#include "verify/case.hpp"

namespace shortconv::tools::verify {
namespace {

DType pick_dtype(Random& random) { return random.pick(capabilities().dtypes).value; }

// [tokens, channels], or [sequences, tokens, channels].
TensorSpec lay_out_rows(Random& random, DType dtype, const std::vector<std::int64_t>& shape,
                        Layout layout) {
  const bool batch = shape.size() == 3;
  switch (layout) {
    case Layout::kTokenMajor:
      return lay_out(random, dtype, shape, batch ? Order{0, 1, 2} : Order{0, 1}, {});
    case Layout::kChannelMajor:
      return lay_out(random, dtype, shape, batch ? Order{0, 2, 1} : Order{1, 0}, {});
    case Layout::kStrided:
      break;
  }
  Order order(shape.size());
  std::iota(order.begin(), order.end(), 0);
  random.shuffle(order);
  return lay_out(random, dtype, shape, order,
                 {.inner_stride = random.pick({1, 2, 3}), .padding = 0.7, .reversal = 0.25});
}

Layout pick_layout(Random& random) {
  return random.pick({Layout::kTokenMajor, Layout::kTokenMajor, Layout::kTokenMajor,
                      Layout::kChannelMajor, Layout::kStrided});
}

TensorSpec lay_out_weight(Random& random, DType dtype, std::int64_t channels, std::int64_t width) {
  const Order order = random.chance(0.7) ? Order{0, 1} : Order{1, 0};
  TensorSpec spec = lay_out(random, dtype, {channels, width}, order,
                            {.inner_stride = random.chance(0.1) ? 2 : 1, .reversal = 0.05});
  if (random.chance(0.03)) spec.strides[0] = 0;  // one filter for all channels
  return spec;
}

TensorSpec lay_out_state(Random& random, DType dtype, std::int64_t slots, std::int64_t columns,
                         std::int64_t channels) {
  const Order order = random.chance(0.5) ? Order{0, 1, 2} : Order{0, 2, 1};
  const bool odd = random.chance(0.1);
  return lay_out(random, dtype, {slots, columns, channels}, order,
                 {.inner_stride = odd ? 2 : 1, .padding = 0.35, .reversal = odd ? 0.3 : 0});
}

// [slots, tokens, history, channels], or without the first axis; overlapping ones have one axis of
// columns for both tokens and history.
TensorSpec lay_out_windows(Random& random, DType dtype, std::vector<std::int64_t> shape,
                           bool overlapping) {
  const std::vector<std::int64_t> wanted = shape;
  if (overlapping) {
    shape = {shape[0], std::max<std::int64_t>(shape[1] + shape[2] - 1, 0), shape[3]};
  }
  Order order(shape.size());
  std::iota(order.begin(), order.end(), 0);
  if (random.chance(0.4)) std::swap(order[order.size() - 1], order[order.size() - 2]);
  const bool odd = random.chance(0.1);
  TensorSpec spec =
      lay_out(random, dtype, shape, order,
              {.inner_stride = odd ? 2 : 1, .padding = 0.35, .reversal = odd ? 0.3 : 0});
  if (overlapping) {
    spec.strides = {spec.strides[0], spec.strides[1], spec.strides[1], spec.strides[2]};
    spec.shape = wanted;
  }
  return spec;
}

bool overlap(WindowsKind kind) {
  return kind == WindowsKind::kOverlapping || kind == WindowsKind::kOverlappingSlots;
}

// Of the shape that problem.windows has.
void place_windows(Random& random, Case& problem) {
  if (!problem.windows) return;
  if (problem.windows_kind != WindowsKind::kPool) {
    problem.windows = lay_out_windows(random, problem.state->dtype, problem.windows->shape,
                                      overlap(problem.windows_kind));
    return;
  }
  const TensorSpec& state = *problem.state;
  problem.windows->dtype = state.dtype;
  problem.windows->strides = {state.strides[0], state.strides[1], state.strides[1],
                              state.strides[2]};
  problem.windows->origin = state.origin + problem.base_column * state.strides[1];
  problem.windows->elements = state.elements;
}

TensorSpec lay_out_report(Random& random) {
  return lay_out(random, DType::kI64, {kViolations, 2},
                 random.chance(0.7) ? Order{0, 1} : Order{1, 0},
                 {.inner_stride = random.chance(0.2) ? 3 : 1, .reversal = 0.1});
}

std::vector<std::int64_t> pick_lengths(Random& random, std::int64_t history,
                                       std::int64_t most_rows) {
  std::vector<std::int64_t> lengths;
  switch (random.between(0, 9)) {
    case 0:
      if (random.chance(0.5)) return {};
      lengths.assign(static_cast<std::size_t>(random.between(1, 4)), 0);
      break;
    case 1:  // a decode batch in the shape of a prefill
      lengths.assign(static_cast<std::size_t>(random.between(1, 40)), 1);
      break;
    case 2:
    case 3:
    case 4: {  // the edges of what the history covers and of tiles
      const auto edge = random.pick<std::int64_t>({history, 8, 16, 32, 64, 128});
      for (std::int64_t count = random.between(1, 8); count > 0; --count) {
        lengths.push_back(std::max<std::int64_t>(0, edge + random.between(-2, 2)));
      }
      break;
    }
    case 5:
    case 6: {  // one long among short ones
      for (std::int64_t count = random.between(1, 20); count > 0; --count) {
        lengths.push_back(random.between(0, 5));
      }
      const auto place = random.between(0, static_cast<std::int64_t>(lengths.size()));
      lengths.insert(lengths.begin() + place, std::max<std::int64_t>(most_rows / 2, 1));
      break;
    }
    default:
      for (std::int64_t count = random.between(1, 12); count > 0; --count) {
        lengths.push_back(random.between(0, 3 * (history + 1)));
      }
  }
  for (std::int64_t left = most_rows; std::int64_t& length : lengths) {
    length = std::min(length, left);
    left -= length;
  }
  return lengths;
}

std::vector<std::int64_t> starts_of(const std::vector<std::int64_t>& lengths, std::int64_t first) {
  std::vector<std::int64_t> starts{first};
  for (std::int64_t length : lengths) starts.push_back(starts.back() + length);
  return starts;
}

// Rows, sequences and the axes of x.
std::vector<std::int64_t> make_sequences(Random& random, Case& problem, std::int64_t channels,
                                         std::int64_t most_rows) {
  const double form = static_cast<double>(random.between(0, 99));
  if (form < 60) {  // packed
    const auto lengths = pick_lengths(random, problem.history(), most_rows);
    const auto some = [&] { return random.between(1, random.chance(0.3) ? 40 : 9); };
    const std::int64_t before = random.chance(0.3) ? some() : 0;
    const std::int64_t after = random.chance(0.3) ? some() : 0;
    problem.starts = starts_of(lengths, before);
    problem.query_start_loc = make_index(random, problem.starts);
    if (random.chance(0.25)) problem.op = Op::kVerify;
    return {problem.starts.back() + after, channels};
  }
  if (form < 68) {  // one sequence
    if (random.chance(0.2)) problem.op = Op::kVerify;
    const std::int64_t tokens = random.between(0, most_rows);
    problem.starts = {0, tokens};
    return {tokens, channels};
  }
  problem.op = form < 76 ? Op::kForward : form < 83 ? Op::kVerify : Op::kDecode;
  if (form >= 90) {
    const std::int64_t sequences = random.between(random.chance(0.05) ? 0 : 1, 40);
    problem.starts = starts_of(std::vector<std::int64_t>(sequences, 1), 0);
    return {sequences, channels};
  }
  const std::int64_t tokens =
      random.between(random.chance(0.05) ? 0 : 1,
                     problem.op == Op::kForward ? std::min<std::int64_t>(most_rows, 140) : 6);
  const std::int64_t sequences =
      random.between(1, std::clamp<std::int64_t>(most_rows / std::max<std::int64_t>(tokens, 1), 1,
                                                 problem.op == Op::kForward ? 5 : 16));
  problem.starts = starts_of(std::vector<std::int64_t>(sequences, tokens), 0);
  return {sequences, tokens, channels};
}

// What stands around the convolution; gates lie as x does, mostly.
void make_epilogue(Random& random, Case& problem) {
  if (random.chance(0.4)) problem.epilogue = random.pick(capabilities().epilogues).value;
  const auto gate = [&] {
    return lay_out_rows(random, problem.x.dtype, problem.x.shape,
                        random.chance(0.7) ? problem.layout : pick_layout(random));
  };
  if (problem.epilogue == Epilogue::kOutputGate) problem.output_gate = gate();
  if (problem.epilogue != Epilogue::kResidual && random.chance(0.2)) problem.input_gate = gate();
}

std::int64_t pick_invalid_slot(Random& random, const Case& problem, DType dtype) {
  const bool wide = dtype == DType::kI64;
  const auto largest =
      wide ? std::numeric_limits<std::int64_t>::max() : std::numeric_limits<std::int32_t>::max();
  const auto smallest =
      wide ? std::numeric_limits<std::int64_t>::min() : std::numeric_limits<std::int32_t>::min();
  std::vector<std::int64_t> choices{-1, -2, -7, smallest};
  if (problem.null_slot) choices.push_back(*problem.null_slot);
  if (problem.state) {
    for (std::int64_t beyond : {problem.slots(), problem.slots() + 1, largest}) {
      choices.push_back(beyond);
    }
    if (wide) choices.push_back(std::int64_t{1} << 32);  // 0 if it were cut to 32 bits
  }
  return random.pick(choices);
}

// Slots of live sequences never collide: what one writes, no other reads or writes. Skipped and
// empty sequences touch no state, so theirs may be anything.
void make_slots(Random& random, Case& problem, std::int64_t slots, bool may_write_elsewhere) {
  const std::int64_t sequences = problem.sequences();
  if (!random.chance(problem.state ? 0.75 : 0.25)) {
    if (random.chance(0.05)) problem.null_slot = random.between(-1, sequences);
    return;
  }
  std::vector<std::int64_t> pool(static_cast<std::size_t>(2 * sequences + 4));
  std::iota(pool.begin(), pool.end(), 0);
  // Mostly below `slots`; the rest is out of range.
  const auto near = std::clamp<std::int64_t>(slots, 1, static_cast<std::int64_t>(pool.size()));
  random.shuffle(std::span(pool).first(static_cast<std::size_t>(near)));

  if (random.chance(0.3)) problem.null_slot = random.between(-1, std::max<std::int64_t>(slots, 1));
  IndexTensor read = make_index(random, std::vector<std::int64_t>(sequences));
  IndexTensor write = make_index(random, std::vector<std::int64_t>(sequences));
  const bool writes_elsewhere = may_write_elsewhere && random.chance(0.35);
  const bool shares = writes_elsewhere || !problem.writes_state();
  const std::int64_t shared = pool[sequences];  // read by several, written by none
  for (std::int64_t s = 0; s < sequences; ++s) {
    const bool harmless = problem.length(s) == 0 && random.chance(0.3);
    const bool skipped = random.chance(0.1);
    read.values[s] = shares && random.chance(0.2) ? shared : pool[s];
    write.values[s] = pool[random.chance(0.3) ? sequences + 1 + s : s];
    if (skipped) read.values[s] = pick_invalid_slot(random, problem, read.spec.dtype);
    if (skipped ? random.chance(0.3) : random.chance(0.1)) {
      write.values[s] = pick_invalid_slot(random, problem, write.spec.dtype);
    }
    if (harmless) read.values[s] = random.between(-1, std::max<std::int64_t>(slots, 1));
    if (harmless || (skipped && random.chance(0.3))) {
      write.values[s] = random.between(-1, std::max<std::int64_t>(slots, 1));
    }
  }
  problem.read_slots = std::move(read);
  if (writes_elsewhere) problem.write_slots = std::move(write);
}

// How often the live sequences of a case use each slot.
struct SlotUse {
  std::vector<int> readers, writers;

  explicit SlotUse(const Case& problem)
      : readers(static_cast<std::size_t>(problem.slots())), writers(readers) {
    for (std::int64_t s = 0; s < problem.sequences(); ++s) {
      if (!problem.live(s)) continue;
      ++readers[problem.read_slot(s)];
      const std::int64_t written = problem.write_slot(s);
      if (problem.valid_slot(written)) ++writers[written];
    }
  }
  // A slot that nobody uses becomes the caller's; -1 if there is none.
  std::int64_t take(Random& random, const Case& problem) {
    std::vector<std::int64_t> free;
    for (std::int64_t slot = 0; slot < problem.slots(); ++slot) {
      if (readers[slot] + writers[slot] == 0 && problem.valid_slot(slot)) free.push_back(slot);
    }
    if (free.empty()) return -1;
    const std::int64_t slot = random.pick(free);
    ++writers[slot];
    return slot;
  }
};

void make_snapshots(Random& random, Case& problem, SlotUse& use) {
  const std::int64_t sequences = problem.sequences();
  IndexTensor list;
  const std::int64_t count = random.between(random.chance(0.1) ? 0 : 1, 2 * sequences + 2);
  list.spec = lay_out(random, random.pick({DType::kI32, DType::kI64}), {count, 3},
                      random.chance(0.7) ? Order{0, 1} : Order{1, 0},
                      {.inner_stride = random.chance(0.1) ? 2 : 1, .reversal = 0.05});
  for (std::int64_t i = 0; i < count; ++i) {
    SnapshotRow row{
        random.between(random.chance(0.05) ? -1 : 0, std::max<std::int64_t>(sequences - 1, 0)), 0,
        0};
    if (random.chance(0.05)) row.sequence = sequences;
    const bool exists = row.sequence >= 0 && row.sequence < sequences;
    const std::int64_t length = exists ? problem.length(row.sequence) : 3;
    row.token = random.chance(0.4) ? random.between(0, std::min(length, problem.history()))
                                   : random.between(0, length);
    if (random.chance(0.1)) row.token = random.pick<std::int64_t>({-1, length, length + 1});
    const bool live = exists && problem.live(row.sequence);
    if (random.chance(0.1)) {
      row.slot = pick_invalid_slot(random, problem, list.spec.dtype);
    } else if (!live || row.token < 0 || row.token > length) {
      row.slot = random.between(0, problem.slots());  // whatever there is, nobody writes it
    } else if (random.chance(0.1) && problem.valid_slot(problem.write_slot(row.sequence))) {
      row.slot = problem.write_slot(row.sequence);
    } else {
      const std::int64_t own = problem.resumed(row.sequence) ? problem.read_slot(row.sequence) : -1;
      const bool replaces = own >= 0 && use.readers[own] == 1 && use.writers[own] == 0;
      row.slot = replaces && random.chance(0.3) ? own : use.take(random, problem);
      if (row.slot == own && replaces) ++use.writers[own];
    }
    list.values.insert(list.values.end(), {row.sequence, row.token, row.slot});
  }
  problem.snapshots = std::move(list);
}

// A number for each token, of any axes that x has.
IndexTensor lay_out_tokens(Random& random, const std::vector<std::int64_t>& shape_of_x) {
  const std::vector<std::int64_t> shape(shape_of_x.begin(), shape_of_x.end() - 1);
  IndexTensor numbers;
  numbers.spec = lay_out(random, random.pick({DType::kI32, DType::kI64}), shape,
                         shape.size() == 1    ? Order{0}
                         : random.chance(0.8) ? Order{0, 1}
                                              : Order{1, 0},
                         {.inner_stride = random.chance(0.1) ? 2 : 1, .reversal = 0.05});
  const std::int64_t count = std::accumulate(shape.begin(), shape.end(), std::int64_t{1},
                                             [](auto a, auto b) { return a * b; });
  numbers.values.assign(static_cast<std::size_t>(count), 7);
  return numbers;
}

void make_seq_idx(Random& random, Case& problem, const std::vector<std::int64_t>& shape_of_x) {
  IndexTensor numbers = lay_out_tokens(random, shape_of_x);
  const bool wide = numbers.spec.dtype == DType::kI64;
  const double change = random.pick({0.02, 0.1, 0.5, 1.0});
  std::int64_t number = 0;
  for (std::int64_t& value : numbers.values) {
    if (random.chance(change)) number = random.between(-1, 3);
    if (random.chance(0.02)) {  // of which a half is another number, or the sign is another's
      number = wide ? random.pick<std::int64_t>(
                          {std::int64_t{1} << 32, -(std::int64_t{1} << 32), std::int64_t{1} << 31})
                    : std::numeric_limits<std::int32_t>::min();
    }
    value = number;
  }
  problem.seq_idx = std::move(numbers);
}

void make_parents(Random& random, Case& problem) {
  IndexTensor parents = lay_out_tokens(random, problem.x.shape);
  for (std::int64_t s = 0; s < problem.sequences(); ++s) {
    for (std::int64_t t = 0; t < problem.length(s); ++t) {
      std::int64_t& parent = parents.values[problem.starts[s] + t];
      parent = random.chance(0.5) ? t - 1 : random.between(-1, t - 1);
      if (random.chance(0.02)) parent = random.pick<std::int64_t>({-2, t, t + 1, 1 << 30});
    }
  }
  problem.parents = std::move(parents);
}

void make_windows(Random& random, Case& problem, SlotUse& use) {
  const bool batch = problem.x.shape.size() == 3;
  const std::int64_t history = problem.history(), channels = problem.channels();
  std::int64_t longest = 0;
  for (std::int64_t s = 0; s < problem.sequences(); ++s) {
    longest = std::max(longest, problem.length(s));
  }
  const WindowsKind kind = problem.windows_kind;
  problem.windows.emplace();
  if (kind == WindowsKind::kRows || kind == WindowsKind::kOverlapping) {
    problem.windows->shape =
        batch ? std::vector{problem.x.shape[0], problem.x.shape[1], history, channels}
              : std::vector{problem.rows(), history, channels};
    place_windows(random, problem);
    return;
  }
  const bool pool = kind == WindowsKind::kPool;
  const std::int64_t sequences = problem.sequences();
  const std::int64_t slots =
      pool ? random.between(problem.slots() - problem.slots() / 4, problem.slots())
           : sequences + random.between(-1, 2) + (sequences == 0 ? 1 : 0);
  const std::int64_t tokens =
      pool ? random.between(0, problem.state->shape[1] - problem.base_column - (history - 1))
           : random.between(std::max<std::int64_t>(longest - 1, 0), longest + 1);
  problem.windows->shape = {slots, tokens, history, channels};
  place_windows(random, problem);
  IndexTensor list = make_index(random, shuffled(random, sequences));
  for (std::int64_t s = 0; s < sequences; ++s) {
    std::int64_t& slot = list.values[s];
    if (pool && problem.live(s)) {
      const std::int64_t own = problem.read_slot(s);
      const bool rolls = use.readers[own] == 1 && use.writers[own] == 0 && random.chance(0.8);
      slot = rolls ? own : use.take(random, problem);
    }
    if (random.chance(0.08)) {
      const bool wide = list.spec.dtype == DType::kI64;
      slot = random.pick<std::int64_t>(
          {-1, std::numeric_limits<std::int32_t>::min(), slots, slots + 1,
           wide ? std::int64_t{1} << 32 : std::numeric_limits<std::int32_t>::max()});
    }
  }
  problem.intermediate_slots = std::move(list);
}

void make_ring_positions(Random& random, Case& problem) {
  IndexTensor positions = make_index(random, std::vector<std::int64_t>(problem.sequences()));
  const bool wide = positions.spec.dtype == DType::kI64;
  for (std::int64_t& position : positions.values) {
    position = random.between(-2, 3 * problem.state->shape[1]);
    if (random.chance(0.05)) {
      position = random.pick<std::int64_t>(
          {std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max(),
           wide ? std::numeric_limits<std::int64_t>::max() : 1000003,
           wide ? std::numeric_limits<std::int64_t>::min() : -1});
    }
  }
  problem.cache_seqlens = std::move(positions);
}

// Which sequences begin from their slot, and from which of its columns.
void make_history(Random& random, Case& problem) {
  const std::int64_t sequences = problem.sequences();
  if (!problem.cache_seqlens && !problem.shift_full_state && random.chance(0.25)) {
    IndexTensor offsets = make_index(random, std::vector<std::int64_t>(sequences));
    for (std::int64_t& offset : offsets.values) {
      offset = random.chance(0.05)
                   ? random.pick<std::int64_t>({std::numeric_limits<std::int32_t>::max(),
                                                std::numeric_limits<std::int32_t>::min()})
                   : random.between(-3, problem.state->shape[1] + 2);
    }
    problem.read_offsets = std::move(offsets);
  }
  problem.initial_state = InitialState::kAll;
  if (problem.op == Op::kDecode) return;
  if (problem.op == Op::kForward) {
    problem.initial_state =
        random.pick({InitialState::kNone, InitialState::kAll, InitialState::kByFlag});
  } else if (random.chance(0.4)) {
    problem.initial_state = InitialState::kByFlag;
  }
  if (problem.initial_state == InitialState::kByFlag) {
    IndexTensor flags;
    flags.spec = lay_out_list(random, random.pick({DType::kBool, DType::kU8}), sequences);
    flags.values.resize(static_cast<std::size_t>(sequences));
    for (std::int64_t& flag : flags.values) flag = random.between(0, 1);
    problem.has_initial_state = std::move(flags);
  }
}

void make_state(Random& random, Case& problem) {
  const std::int64_t sequences = problem.sequences();
  const bool verify = problem.op == Op::kVerify;
  const bool has_state = problem.op != Op::kForward || random.chance(0.75);
  const bool numbered = problem.seq_idx.has_value();
  const bool snapshots = has_state && !verify && random.chance(0.2) && !numbered;
  const std::int64_t slots =
      random.chance(0.3) || snapshots ? 2 * sequences + 4 : sequences + random.between(0, 5);
  const bool ring = has_state && random.chance(0.2);
  const bool tree = verify && random.chance(0.4);
  const std::int64_t history = problem.history();
  if (verify) {
    problem.windows_kind =
        random.pick({WindowsKind::kNone, WindowsKind::kRows, WindowsKind::kRows,
                     WindowsKind::kSlots, WindowsKind::kOverlapping, WindowsKind::kOverlappingSlots,
                     WindowsKind::kPool, WindowsKind::kPool});
    const bool batch = problem.x.shape.size() == 3;
    if (problem.windows_kind == WindowsKind::kOverlapping && (tree || !batch)) {
      problem.windows_kind = WindowsKind::kRows;
    }
    if (problem.windows_kind == WindowsKind::kOverlappingSlots && tree) {
      problem.windows_kind = WindowsKind::kSlots;
    }
    if (problem.windows_kind == WindowsKind::kPool && (tree || ring)) {
      problem.windows_kind = WindowsKind::kNone;
    }
    const bool rolls = problem.windows_kind == WindowsKind::kPool;
    problem.update_state = (!tree || ring) && !rolls && random.chance(0.25);
  }
  const DType dtype = random.chance(0.6) ? problem.x.dtype : pick_dtype(random);
  if (has_state) {
    const bool rolls = problem.windows_kind == WindowsKind::kPool;
    const std::int64_t columns =
        history + (rolls  ? random.between(0, 9)
                   : ring ? random.pick<std::int64_t>({0, 0, 1, 5, 30})
                          : random.pick<std::int64_t>({0, 0, 0, 1, 3, problem.width}));
    problem.state = lay_out_state(random, dtype, slots, columns, problem.channels());
    if (!ring) problem.base_column = random.between(0, columns - history);
    problem.shift_full_state = !ring && !verify && !snapshots && random.chance(0.4) && !numbered;
  }
  make_slots(random, problem, slots, has_state && (!tree || ring) && !numbered);
  if (!has_state) return;
  if (ring) make_ring_positions(random, problem);
  make_history(random, problem);
  SlotUse use(problem);
  if (snapshots) make_snapshots(random, problem, use);
  if (tree) make_parents(random, problem);
  if (problem.windows_kind != WindowsKind::kNone) make_windows(random, problem, use);
}

void make_schedule(Random& random, Case& problem) {
  problem.threads = random.pick({1, 2, 3, 8});
  const bool verify = problem.op == Op::kVerify;
  problem.in_place =
      !verify && problem.out.dtype == problem.x.dtype && random.chance(0.15) && !problem.seq_idx;
  problem.schedule = Schedule::kFlat;
  const bool flat = problem.in_place || verify || problem.snapshots || problem.shift_full_state;
  if (flat || !problem.query_start_loc) return;
  if (random.chance(0.5)) return;
  problem.schedule = random.pick(capabilities().schedules).value;
  std::int64_t longest = 0;
  for (std::int64_t s = 0; s < problem.sequences(); ++s) {
    longest = std::max(longest, problem.length(s));
  }
  problem.max_seqlen = random.chance(0.8) ? longest : random.between(longest, problem.rows());
}

}  // namespace

Case make_case(std::uint64_t seed, std::span<const std::uint8_t> choices) {
  Random random(seed, choices);
  Case problem;
  problem.seed = seed;
  const Capabilities& can = capabilities();
  problem.width = make_width(random);
  if (random.chance(0.12)) {
    const int most = (can.max_width - 1) / (problem.width - 1);
    problem.dilation = std::min(most, random.pick({2, 3, 4, most}));
  }
  problem.activation = random.pick(can.activations).value;
  problem.padded_rows = random.pick(can.padded_rows).value;
  const DType x_dtype = pick_dtype(random);
  const DType out_dtype = random.chance(0.75) ? x_dtype : pick_dtype(random);
  const DType weight_dtype = random.chance(0.6) ? x_dtype : pick_dtype(random);

  const auto channels = random.pick<std::int64_t>(
      {1, 2, 3, 8, 16, 17, 24, 31, 32, 33, 40, 64, 64, 100, 128, 136, 256, 257, 264, 520, 1100});
  const auto most_elements = random.pick<std::int64_t>(
      {256, 512, 512, 1024, 1024, 2048, 2048, 4096, 4096, 8192, 16384, 40000});
  problem.layout = pick_layout(random);
  // Kernels that walk along tokens need many of them before they leave their first and last steps.
  const std::int64_t stretch = problem.layout == Layout::kChannelMajor ? 4 : 1;
  const std::int64_t most_rows =
      std::clamp<std::int64_t>(stretch * most_elements / channels, 2, 400);
  const auto shape = make_sequences(random, problem, channels, most_rows);
  if (problem.op == Op::kVerify) problem.dilation = 1;
  if (problem.op == Op::kForward && !problem.query_start_loc && random.chance(0.5)) {
    make_seq_idx(random, problem, shape);
  }
  problem.x = lay_out_rows(random, x_dtype, shape, problem.layout);
  problem.out = lay_out_rows(random, out_dtype, shape,
                             random.chance(0.7) ? problem.layout : pick_layout(random));
  problem.weight = lay_out_weight(random, weight_dtype, channels, problem.width);
  if (random.chance(0.5)) {
    problem.bias = lay_out_list(random, weight_dtype, channels);
    if (random.chance(0.03)) problem.bias->strides[0] = 0;
  }
  make_epilogue(random, problem);
  make_state(random, problem);
  make_schedule(random, problem);
  if (problem.in_place) problem.out = problem.x;

  problem.x_scale = random.pick({1.0, 1.0, 1.0, 1.0, 1e-3, 30.0});
  if (random.chance(0.12)) problem.special_period = random.pick({30, 200, 1000});
  if (random.chance(0.25)) problem.violations = lay_out_report(random);
  return problem;
}

Case with_other_layouts(const Case& problem, std::uint64_t seed) {
  Random random(seed);
  Case other = problem;
  const std::int64_t channels = problem.channels();
  other.layout = pick_layout(random);
  other.x = lay_out_rows(random, problem.x.dtype, problem.x.shape, other.layout);
  other.out = lay_out_rows(random, problem.out.dtype, problem.x.shape, pick_layout(random));
  for (std::optional<TensorSpec>* gate : {&other.input_gate, &other.output_gate}) {
    if (!*gate) continue;
    *gate = lay_out_rows(random, problem.x.dtype, problem.x.shape,
                         random.chance(0.7) ? other.layout : pick_layout(random));
  }
  other.weight = lay_out_weight(random, problem.weight.dtype, channels, problem.width);
  // A shared filter or bias is part of what is computed.
  if (problem.weight.strides[0] == 0 || other.weight.strides[0] == 0) other.weight = problem.weight;
  if (other.state) {
    other.state = lay_out_state(random, problem.state->dtype, problem.slots(),
                                problem.state->shape[1], channels);
  }
  place_windows(random, other);
  make_schedule(random, other);
  if (other.in_place) other.out = other.x;
  return other;
}

}  // namespace shortconv::tools::verify
