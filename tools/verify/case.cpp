#include "verify/case.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "shortconv/capability.hpp"
#include "verify/random.hpp"

namespace shortconv::tools::verify {
namespace {

DType pick_dtype(Random& random) { return random.pick(capabilities().dtypes).value; }

// Axes from the slowest to the fastest.
using Order = std::vector<int>;

struct Spread {
  std::int64_t inner_stride = 1;
  double padding = 0.3;  // probability of a gap after an axis
  double reversal = 0;   // probability that an axis runs backwards
};

// Any placement that maps no two elements to one address, at any alignment that the element type
// allows.
TensorSpec lay_out(Random& random, DType dtype, const std::vector<std::int64_t>& shape,
                   const Order& order, const Spread& spread) {
  TensorSpec spec;
  spec.dtype = dtype;
  spec.shape = shape;
  spec.strides.resize(shape.size());
  std::int64_t stride = spread.inner_stride;
  std::int64_t below = 0, above = 0;  // elements before and after the one with all indices 0
  for (auto axis = order.rbegin(); axis != order.rend(); ++axis) {
    const std::int64_t extent = std::max<std::int64_t>(shape[*axis], 1);
    const bool reversed = random.chance(spread.reversal);
    spec.strides[*axis] = reversed ? -stride : stride;
    (reversed ? below : above) += (extent - 1) * stride;
    stride *= extent;
    if (random.chance(spread.padding)) stride += random.pick({1, 3, 8, 16, 29});
  }
  const std::int64_t misalignment = random.chance(0.5) ? 0 : random.between(1, 7);
  spec.origin = below + misalignment;
  spec.elements = spec.origin + above + 1;
  return spec;
}

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
  for (std::size_t i = order.size() - 1; i > 0; --i) {
    std::swap(order[i],
              order[static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(i)))]);
  }
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

TensorSpec lay_out_list(Random& random, DType dtype, std::int64_t entries) {
  return lay_out(random, dtype, {entries}, {0},
                 {.inner_stride = random.chance(0.1) ? random.between(2, 3) : 1, .reversal = 0.05});
}

IndexTensor make_index(Random& random, std::vector<std::int64_t> values) {
  const DType dtype = random.chance(0.5) ? DType::kI32 : DType::kI64;
  const auto entries = static_cast<std::int64_t>(values.size());
  return {lay_out_list(random, dtype, entries), std::move(values)};
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
    const std::int64_t before = random.chance(0.3) ? random.between(1, 9) : 0;
    const std::int64_t after = random.chance(0.3) ? random.between(1, 9) : 0;
    problem.starts = starts_of(lengths, before);
    problem.query_start_loc = make_index(random, problem.starts);
    return {problem.starts.back() + after, channels};
  }
  if (form < 68) {  // one sequence
    const std::int64_t tokens = random.between(0, most_rows);
    problem.starts = {0, tokens};
    return {tokens, channels};
  }
  problem.op = form < 78 ? Op::kForward : Op::kDecode;
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
  return random.pick(std::span<const std::int64_t>(choices));
}

// Slots of live sequences never collide: what one writes, no other reads or writes. Skipped and
// empty sequences touch no state, so theirs may be anything.
void make_slots(Random& random, Case& problem, std::int64_t slots) {
  const std::int64_t sequences = problem.sequences();
  if (!random.chance(problem.state ? 0.75 : 0.25)) {
    if (random.chance(0.05)) problem.null_slot = random.between(-1, sequences);
    return;
  }
  std::vector<std::int64_t> pool(static_cast<std::size_t>(2 * sequences + 4));
  std::iota(pool.begin(), pool.end(), 0);
  // Mostly below `slots`; the rest is out of range.
  const auto near = std::clamp<std::int64_t>(slots, 1, static_cast<std::int64_t>(pool.size()));
  for (std::int64_t i = near - 1; i > 0; --i) std::swap(pool[i], pool[random.between(0, i)]);

  if (random.chance(0.3)) problem.null_slot = random.between(-1, std::max<std::int64_t>(slots, 1));
  IndexTensor read = make_index(random, std::vector<std::int64_t>(sequences));
  IndexTensor write = make_index(random, std::vector<std::int64_t>(sequences));
  const bool writes_elsewhere = problem.state && random.chance(0.35);
  const std::int64_t shared = pool[sequences];  // read by several, written by none
  for (std::int64_t s = 0; s < sequences; ++s) {
    const bool harmless = problem.length(s) == 0 && random.chance(0.3);
    const bool skipped = random.chance(0.1);
    read.values[s] = writes_elsewhere && random.chance(0.2) ? shared : pool[s];
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

void make_state(Random& random, Case& problem) {
  const std::int64_t sequences = problem.sequences();
  const bool decode = problem.op == Op::kDecode;
  const bool has_state = decode || random.chance(0.75);
  const std::int64_t slots =
      random.chance(0.3) ? 2 * sequences + 4 : sequences + random.between(0, 5);
  const std::int64_t history = problem.history();
  const DType dtype = random.chance(0.6) ? problem.x.dtype : pick_dtype(random);
  if (has_state) {
    const std::int64_t columns =
        history + random.pick<std::int64_t>({0, 0, 0, 1, 3, problem.width});
    problem.state = lay_out_state(random, dtype, slots, columns, problem.channels());
    problem.state_base = random.between(0, columns - history);
  }
  make_slots(random, problem, slots);
  if (!has_state) return;

  if (random.chance(0.25)) {
    IndexTensor offsets = make_index(random, std::vector<std::int64_t>(sequences));
    for (std::int64_t& offset : offsets.values) {
      offset = random.chance(0.05)
                   ? random.pick<std::int64_t>({std::numeric_limits<std::int32_t>::max(),
                                                std::numeric_limits<std::int32_t>::min()})
                   : random.between(-3, problem.state->shape[1] + 2);
    }
    problem.read_offsets = std::move(offsets);
  }
  if (decode) {
    problem.initial_state = InitialState::kAll;
    return;
  }
  problem.initial_state =
      random.pick({InitialState::kNone, InitialState::kAll, InitialState::kByFlag});
  if (problem.initial_state == InitialState::kByFlag) {
    IndexTensor flags;
    flags.spec = lay_out_list(random, random.pick({DType::kBool, DType::kU8}), sequences);
    flags.values.resize(static_cast<std::size_t>(sequences));
    for (std::int64_t& flag : flags.values) flag = random.between(0, 1);
    problem.has_initial_state = std::move(flags);
  }
}

void make_schedule(Random& random, Case& problem) {
  problem.threads = random.pick({1, 2, 3, 8});
  problem.in_place = problem.out.dtype == problem.x.dtype && random.chance(0.15);
  problem.schedule = Schedule::kFlat;
  if (problem.in_place || !problem.query_start_loc || random.chance(0.5)) return;
  problem.schedule = random.pick(capabilities().schedules).value;
  std::int64_t longest = 0;
  for (std::int64_t s = 0; s < problem.sequences(); ++s) {
    longest = std::max(longest, problem.length(s));
  }
  problem.longest_sequence = random.chance(0.8) ? longest : random.between(longest, problem.rows());
}

std::string describe(const TensorSpec& spec) {
  return fmt::format("{} [{}] strides ({}), element {} of {}", name(spec.dtype),
                     fmt::join(spec.shape, ", "), fmt::join(spec.strides, ", "), spec.origin,
                     spec.elements);
}

void describe(std::string& text, std::string_view label, const std::optional<IndexTensor>& index) {
  if (!index) return;
  text +=
      fmt::format("  {} {} = {}\n", label, describe(index->spec), fmt::join(index->values, " "));
}

std::string_view name_of(Layout layout) {
  switch (layout) {
    case Layout::kTokenMajor:
      return "token-major";
    case Layout::kChannelMajor:
      return "channel-major";
    case Layout::kStrided:
      break;
  }
  return "strided";
}

std::string_view name_of(InitialState initial) {
  switch (initial) {
    case InitialState::kNone:
      return "none";
    case InitialState::kAll:
      return "all";
    case InitialState::kByFlag:
      break;
  }
  return "by-flag";
}

}  // namespace

std::int64_t TensorSpec::offset(std::initializer_list<std::int64_t> index) const {
  std::int64_t at = origin;
  std::size_t axis = 0;
  for (std::int64_t i : index) at += i * strides[axis++];
  return at;
}

std::int64_t TensorSpec::row_offset(std::int64_t row, std::int64_t channel) const {
  if (shape.size() == 2) return offset({row, channel});
  return offset({row / shape[1], row % shape[1], channel});
}

TensorSpec dense(DType dtype, std::vector<std::int64_t> shape) {
  TensorSpec spec;
  spec.dtype = dtype;
  spec.shape = std::move(shape);
  spec.strides.resize(spec.shape.size());
  std::int64_t stride = 1;
  for (std::size_t axis = spec.shape.size(); axis-- > 0;) {
    spec.strides[axis] = stride;
    stride *= std::max<std::int64_t>(spec.shape[axis], 1);
  }
  spec.elements = stride;
  return spec;
}

std::int64_t Case::rows() const {
  return x.shape.size() == 2 ? x.shape[0] : x.shape[0] * x.shape[1];
}

std::int64_t Case::length(std::int64_t sequence) const {
  return starts[sequence + 1] - starts[sequence];
}

std::int64_t Case::read_slot(std::int64_t sequence) const {
  return read_slots ? read_slots->values[sequence] : sequence;
}

std::int64_t Case::write_slot(std::int64_t sequence) const {
  return write_slots ? write_slots->values[sequence] : read_slot(sequence);
}

std::int64_t Case::read_offset(std::int64_t sequence) const {
  if (!read_offsets) return 0;
  const std::int64_t last = state->shape[1] - history() - state_base;
  return std::clamp<std::int64_t>(read_offsets->values[sequence], 0, last);
}

bool Case::resumed(std::int64_t sequence) const {
  switch (initial_state) {
    case InitialState::kNone:
      return false;
    case InitialState::kAll:
      return true;
    case InitialState::kByFlag:
      break;
  }
  return has_initial_state->values[sequence] != 0;
}

bool Case::valid_slot(std::int64_t slot) const {
  return slot >= 0 && (!null_slot || slot != *null_slot) && (!state || slot < slots());
}

Case make_case(std::uint64_t seed) {
  Random random(seed);
  Case problem;
  problem.seed = seed;
  const Capabilities& can = capabilities();
  problem.width = random.chance(0.9)
                      ? random.pick(can.widths)
                      : static_cast<int>(random.between(can.widths.back() + 1, can.max_width));
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
  make_schedule(random, other);
  if (other.in_place) other.out = other.x;
  return other;
}

std::vector<std::pair<std::string_view, std::string>> traits(const Case& problem) {
  const auto text = [](std::string_view value) { return std::string(value); };
  const auto yes = [](bool value) { return std::string(value ? "yes" : "no"); };
  return {
      {"op", problem.op == Op::kForward ? "forward" : "decode"},
      {"width", std::to_string(problem.width)},
      {"dtype", text(name(problem.x.dtype))},
      {"out", text(name(problem.out.dtype))},
      {"weight", text(name(problem.weight.dtype))},
      {"state", problem.state ? text(name(problem.state->dtype)) : "none"},
      {"dilation", std::to_string(problem.dilation)},
      {"activation", text(name(problem.activation))},
      {"epilogue", text(name(problem.epilogue))},
      {"input-gate", yes(problem.input_gate.has_value())},
      {"bias", yes(problem.bias.has_value())},
      {"layout", text(name_of(problem.layout))},
      {"packed", yes(problem.query_start_loc.has_value())},
      {"schedule", text(name(problem.schedule))},
      {"threads", std::to_string(problem.threads)},
      {"padded-rows", text(name(problem.padded_rows))},
      {"initial-state", text(name_of(problem.initial_state))},
      {"in-place", yes(problem.in_place)},
      {"special", yes(problem.special_period != 0)},
  };
}

std::string to_string(const Case& problem) {
  std::string text = fmt::format("case {}\n ", problem.seed);
  for (const auto& [key, value] : traits(problem)) text += fmt::format(" {}={}", key, value);
  text += fmt::format("\n  x {}\n  out {}\n  weight {}\n", describe(problem.x),
                      problem.in_place ? "= x" : describe(problem.out), describe(problem.weight));
  if (problem.bias) text += fmt::format("  bias {}\n", describe(*problem.bias));
  if (problem.input_gate) {
    text += fmt::format("  input_gate {}\n", describe(*problem.input_gate));
  }
  if (problem.output_gate) {
    text += fmt::format("  output_gate {}\n", describe(*problem.output_gate));
  }
  if (problem.state) {
    text += fmt::format("  state {}, base {}\n", describe(*problem.state), problem.state_base);
  }
  describe(text, "query_start_loc", problem.query_start_loc);
  describe(text, "read_slots", problem.read_slots);
  describe(text, "write_slots", problem.write_slots);
  describe(text, "read_offsets", problem.read_offsets);
  describe(text, "has_initial_state", problem.has_initial_state);
  if (problem.null_slot) text += fmt::format("  null_slot {}\n", *problem.null_slot);
  if (problem.schedule == Schedule::kSequenceGrid) {
    text += fmt::format("  longest_sequence {}\n", problem.longest_sequence);
  }
  text += fmt::format("  values: x and state scaled by {}", problem.x_scale);
  if (problem.special_period != 0) {
    text += fmt::format(", one in {} NaN or infinite", problem.special_period);
  }
  return text + "\n";
}

}  // namespace shortconv::tools::verify
