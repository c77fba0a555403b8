// A random backward call, and its memory.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shortconv/plan.hpp"
#include "verify/buffers.hpp"
#include "verify/case.hpp"
#include "verify/layout.hpp"

namespace shortconv::tools::verify {

template <Axis...>
using OptionalSpec = std::optional<TensorSpec>;
template <Axis...>
using OptionalBuffer = std::optional<TensorBuffer>;

/// Rows [begin, end) that are convolved with each other and with nothing else.
struct Part {
  std::int64_t sequence = 0;
  std::int64_t begin = 0, end = 0;
  bool has_states = true;  // begins with the initial state, ends with the final one
};

struct BackwardCase : BackwardTensors<OptionalSpec> {
  std::uint64_t seed = 0;
  int width = 4;
  int dilation = 1;
  Activation activation = Activation::kNone;
  bool residual = false;
  bool accumulate = false;
  int threads = 1;
  bool is_fast = false;               // token-major rows of one type, aligned
  std::vector<std::int64_t> starts;   // first row of each sequence, and the end of the last
  std::vector<std::int64_t> numbers;  // values of seq_idx

  [[nodiscard]] std::int64_t sequences() const { return std::ssize(starts) - 1; }
  [[nodiscard]] std::int64_t rows() const;
  [[nodiscard]] std::int64_t channels() const { return x->shape.back(); }
  [[nodiscard]] std::int64_t history() const { return std::int64_t{width - 1} * dilation; }
  /// In the order of their rows. A sequence whose first rows are padding begins with an empty part,
  /// which has its initial state.
  [[nodiscard]] std::vector<Part> parts() const;
};

/// The same case for the same seed, always. Half of the cases are as the fast kernels take them.
[[nodiscard]] BackwardCase make_backward_case(std::uint64_t seed,
                                              std::span<const std::uint8_t> choices = {});

/// Other strides, alignments and threads, and some gradients fewer: no bit of the others changes.
[[nodiscard]] BackwardCase with_other_layouts(const BackwardCase& problem, std::uint64_t seed);

/// As of other cases; "op" is "backward".
[[nodiscard]] std::vector<std::pair<std::string_view, std::string>> traits(
    const BackwardCase& problem);
[[nodiscard]] TraitValues possible_backward_traits();

[[nodiscard]] std::string to_string(const BackwardCase& problem);

struct BackwardBuffers : BackwardTensors<OptionalBuffer> {
  /// All that there are.
  [[nodiscard]] std::vector<const TensorBuffer*> tensors() const;
};

/// Memory with the values of the case, which depend on the seed and on the indices of an element
/// alone. Rows without a sequence hold NaN, which must not reach any gradient.
[[nodiscard]] BackwardBuffers make_buffers(const BackwardCase& problem);

/// Runs the case where the backend works, with a workspace of exactly the size that its plan asks
/// for; writing beside that is an error.
[[nodiscard]] Status run_case(const BackwardCase& problem, const BackwardBuffers& buffers,
                              BackendId backend);

/// Input `n` of a sequence or part, from the first of its rows on; below 0 the initial state. The
/// product with input_gate is rounded as in the forward call.
[[nodiscard]] double input_of(const BackwardCase& problem, const BackwardBuffers& buffers,
                              const Part& part, std::int64_t n, std::int64_t channel);

}  // namespace shortconv::tools::verify
