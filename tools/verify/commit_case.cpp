#include "verify/commit_case.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "common/random.hpp"
#include "shortconv/capability.hpp"
#include "verify/on_gpu.hpp"

namespace shortconv::tools::verify {
namespace {

struct CommitBuffers {
  TensorBuffer windows, state, accepted;
  std::optional<TensorBuffer> slots, second_slots, query_start_loc;

  [[nodiscard]] std::vector<const TensorBuffer*> tensors() const {
    std::vector<const TensorBuffer*> list{&windows, &state, &accepted};
    for (const std::optional<TensorBuffer>* buffer : {&slots, &second_slots, &query_start_loc}) {
      if (*buffer) list.push_back(&**buffer);
    }
    return list;
  }
};

// Bits are moved, so any will do.
void fill_bytes(const TensorBuffer& buffer, std::uint64_t seed) {
  const auto bytes = static_cast<std::size_t>(element_bytes(buffer.spec().dtype));
  for_each_element(buffer.spec(), [&](std::int64_t offset) {
    const std::uint64_t bits = mix(seed ^ static_cast<std::uint64_t>(offset));
    std::memcpy(buffer.element(offset), &bits, bytes);
  });
}

CommitBuffers make_commit_buffers(const CommitCase& problem) {
  CommitBuffers buffers{.windows = TensorBuffer(problem.windows),
                        .state = TensorBuffer(problem.state),
                        .accepted = index_buffer(problem.accepted),
                        .slots = index_buffer(problem.slots),
                        .second_slots = index_buffer(problem.second_slots),
                        .query_start_loc = index_buffer(problem.query_start_loc)};
  fill_bytes(buffers.windows, mix(problem.seed));
  fill_bytes(buffers.state, mix(~problem.seed));
  return buffers;
}

Status run_commit(const CommitCase& problem, const CommitBuffers& buffers, BackendId backend) {
  CommitArgs args;
  args.intermediate_states = buffers.windows.view();
  args.state = buffers.state.view();
  args.accepted = buffers.accepted.view();
  if (buffers.slots) args.slots = buffers.slots->view();
  if (buffers.second_slots) args.second_slots = buffers.second_slots->view();
  if (buffers.query_start_loc) args.query_start_loc = buffers.query_start_loc->view();
  args.width = problem.width;
  args.rows_per_token = problem.form == CommitForm::kOverlapping ? 1 : problem.width - 1;
  args.base_column = problem.base_column;
  args.null_slot = problem.null_slot;
  args.backend = backend;
  args.threads = problem.threads;
  return backend == BackendId::kCuda ? commit_on_gpu(args, buffers.tensors()) : commit(args);
}

std::optional<std::string> check_rest(const CommitBuffers& before, const CommitBuffers& after) {
  auto failure = check_gaps("state", before.state, after.state);
  if (!failure) failure = check_unchanged("windows", before.windows, after.windows);
  if (!failure) failure = check_unchanged("accepted", before.accepted, after.accepted);
  if (!failure) failure = check_unchanged("slots", before.slots, after.slots);
  if (!failure) failure = check_unchanged("second_slots", before.second_slots, after.second_slots);
  if (!failure) {
    failure = check_unchanged("query_start_loc", before.query_start_loc, after.query_start_loc);
  }
  return failure;
}

// Windows and pool: the last two axes are those of the history and of channels.
TensorSpec lay_out_layers(Random& random, DType dtype, const std::vector<std::int64_t>& shape) {
  Order order(shape.size());
  std::iota(order.begin(), order.end(), 0);
  if (random.chance(0.4)) std::swap(order[order.size() - 1], order[order.size() - 2]);
  if (random.chance(0.15)) std::swap(order[0], order[1]);
  const bool odd = random.chance(0.1);
  return lay_out(random, dtype, shape, order,
                 {.inner_stride = odd ? 2 : 1,
                  .padding = random.chance(0.4) ? 0 : 0.35,
                  .reversal = odd ? 0.3 : 0});
}

std::int64_t invalid_slot(Random& random, const CommitCase& problem) {
  return random.pick<std::int64_t>({-1, std::numeric_limits<std::int32_t>::min(),
                                    std::numeric_limits<std::int32_t>::max(),
                                    problem.state.shape[1], problem.null_slot.value_or(-3)});
}

// Slots of which no two live sequences have the same one, with bad ones among them.
void make_commit_slots(Random& random, CommitCase& problem) {
  const std::int64_t slots = problem.state.shape[1], sequences = problem.sequences();
  const std::vector<std::int64_t> order = shuffled(random, std::max(slots, 2 * sequences));
  const auto list = [&](std::int64_t first) {
    IndexTensor index =
        make_index(random, {order.begin() + first, order.begin() + first + sequences});
    for (std::int64_t& slot : index.values) {
      if (random.chance(0.15)) slot = invalid_slot(random, problem);
    }
    return index;
  };
  if (problem.state.shape[1] < sequences || random.chance(0.8)) problem.slots = list(0);
  if (random.chance(0.5) && problem.slots) problem.second_slots = list(sequences);
}

}  // namespace

CommitCase make_commit_case(std::uint64_t seed, std::span<const std::uint8_t> choices) {
  Random random(seed, choices);
  CommitCase problem;
  problem.seed = seed;
  const Capabilities& can = capabilities();
  problem.width = make_width(random);
  problem.form = random.pick({CommitForm::kDense, CommitForm::kOverlapping, CommitForm::kPacked,
                              CommitForm::kPackedWindows});
  problem.threads = random.pick({1, 1, 1, 2, 3});
  const DType dtype = random.pick(can.dtypes).value;
  const std::int64_t history = problem.width - 1;
  const std::int64_t layers = random.between(random.chance(0.05) ? 0 : 1, 4);
  const std::int64_t sequences = random.between(random.chance(0.05) ? 0 : 1, 9);
  const auto channels = random.pick<std::int64_t>({1, 3, 8, 16, 24, 33, 64, 100, 256});
  const std::int64_t extra = random.pick<std::int64_t>({0, 0, 0, 1, 4});
  problem.base_column = random.between(0, extra);
  if (random.chance(0.3)) problem.null_slot = random.between(-1, sequences);

  std::vector<std::int64_t> lengths(static_cast<std::size_t>(sequences));
  const std::int64_t drafts = random.between(0, 6);
  const bool packed =
      problem.form == CommitForm::kPacked || problem.form == CommitForm::kPackedWindows;
  for (std::int64_t& length : lengths) length = packed ? random.between(0, 6) : drafts;
  std::vector<std::int64_t> bounds{packed ? random.between(0, 2) : 0};
  for (const std::int64_t length : lengths) bounds.push_back(bounds.back() + length);
  problem.tokens = packed ? bounds.back() + random.between(0, 2) : drafts;
  switch (problem.form) {
    case CommitForm::kDense:
      problem.windows =
          lay_out_layers(random, dtype, {layers, sequences, drafts * history, channels});
      break;
    case CommitForm::kOverlapping:
      problem.windows = lay_out_layers(
          random, dtype, {layers, sequences, drafts == 0 ? 0 : drafts + history - 1, channels});
      break;
    case CommitForm::kPacked:
      problem.windows = lay_out_layers(random, dtype, {layers, problem.tokens * history, channels});
      break;
    case CommitForm::kPackedWindows:
      problem.windows = lay_out_layers(random, dtype, {layers, problem.tokens, history, channels});
      break;
  }
  problem.state = lay_out_layers(
      random, dtype,
      {layers, sequences + random.between(0, sequences + 3), history + extra, channels});
  std::vector<std::int64_t> accepted;
  for (const std::int64_t length : lengths) {
    accepted.push_back(random.chance(0.15) ? random.pick<std::int64_t>({-1, -9, length, length + 3})
                                           : random.between(-1, length - 1));
  }
  problem.accepted = make_index(random, std::move(accepted));
  if (packed) problem.query_start_loc = make_index(random, std::move(bounds));
  make_commit_slots(random, problem);
  return problem;
}

namespace {

constexpr std::string_view kForms[] = {"rows", "overlapping", "packed", "packed-windows"};

}  // namespace

std::vector<std::pair<std::string_view, std::string>> traits(const CommitCase& problem) {
  return {{"op", "commit"},
          {"width", std::to_string(problem.width)},
          {"dtype", std::string(name(problem.state.dtype))},
          {"windows", std::string(kForms[static_cast<int>(problem.form)])},
          {"packed", problem.packed() ? "yes" : "no"},
          {"threads", std::to_string(problem.threads)}};
}

TraitValues possible_commit_traits() {
  const Capabilities& can = capabilities();
  std::vector<std::string> widths, types;
  for (int width = 2; width <= can.max_width; ++width) widths.push_back(std::to_string(width));
  for (const Named<DType>& type : can.dtypes) types.emplace_back(type.name);
  return {{"op", {"commit"}},        {"width", widths},
          {"dtype", types},          {"windows", {std::begin(kForms), std::end(kForms)}},
          {"packed", {"no", "yes"}}, {"threads", {"1", "2", "3"}}};
}

std::string to_string(const CommitCase& problem) {
  std::string text = fmt::format("case {}\n ", problem.seed);
  for (const auto& [key, value] : traits(problem)) text += fmt::format(" {}={}", key, value);
  text += fmt::format("\n  windows {}\n  state {}, base {}\n", describe(problem.windows),
                      describe(problem.state), problem.base_column);
  text += describe("accepted", problem.accepted) + describe("slots", problem.slots) +
          describe("second_slots", problem.second_slots) +
          describe("query_start_loc", problem.query_start_loc);
  if (problem.null_slot) text += fmt::format("  null_slot {}\n", *problem.null_slot);
  return text;
}

Verdict check_commit(const CommitCase& problem, BackendId backend) {
  Verdict verdict;
  const CommitBuffers before = make_commit_buffers(problem);
  const CommitBuffers after = before, expected = before;
  if (const Status status = run_commit(problem, expected, BackendId::kReference); !status.ok()) {
    verdict.failure = "the reference refuses the case: " + status.message();
    return verdict;
  }
  if (const Status status = run_commit(problem, after, backend); !status.ok()) {
    (status.code() == Code::kUnsupported ? verdict.unsupported : verdict.failure) =
        status.message();
    return verdict;
  }
  verdict.failure =
      compare_elements("state layer, slot, column, channel", after.state, expected.state, false);
  if (!verdict.failure) verdict.failure = check_rest(before, after);
  if (verdict.failure) return verdict;

  Random random(problem.seed);
  const CommitBuffers bad = make_commit_buffers(problem);
  scramble(random, bad.accepted, problem.tokens);
  scramble(random, bad.slots, problem.state.shape[1]);
  scramble(random, bad.second_slots, problem.state.shape[1]);
  scramble(random, bad.query_start_loc, problem.tokens);
  const CommitBuffers spoilt = bad;
  const Status status = run_commit(problem, spoilt, backend);
  verdict.failure =
      status.ok() ? check_rest(bad, spoilt) : std::optional("refused: " + status.message());
  if (verdict.failure) verdict.failure = "with bad bounds, slots and numbers: " + *verdict.failure;
  return verdict;
}

}  // namespace shortconv::tools::verify
