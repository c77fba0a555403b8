// A random backward call with groups, its memory and its check.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shortconv/argument_table.hpp"
#include "shortconv/plan.hpp"
#include "verify/backward_case.hpp"
#include "verify/check.hpp"
#include "verify/grouped_case.hpp"

namespace shortconv::tools::verify {

struct GateGradientSpec : GateGradientTensors<OptionalSpec> {
  HeadMap a_map, b_map;
  DecayForm decay = DecayForm::kLog;
  float beta_factor = 1;
  bool share_columns = false;  // a and b are columns of one tensor

  [[nodiscard]] std::int64_t heads() const { return a_log->shape[0]; }
};

struct GroupedBackwardCase {
  std::uint64_t seed = 0;
  bool is_fast = false;  // as the CUDA kernels take it
  BackwardCase call;     // x and grad_x have the columns of the call with groups; no grad_out
  std::vector<GroupSpec> groups;  // `out`: the gradient of the output
  bool share_gradients = false;   // the groups' gradients are columns of one tensor
  std::optional<GateGradientSpec> gates;

  /// Of the convolution.
  [[nodiscard]] std::int64_t channels() const { return call.weight->shape[0]; }
  /// Which rows a sequence has; the others are padding.
  [[nodiscard]] std::vector<bool> rows_with_a_sequence() const;
  /// Of a tensor with the same rows as x, and more axes after them.
  [[nodiscard]] std::int64_t offset(const TensorSpec& spec, std::int64_t row,
                                    std::initializer_list<std::int64_t> rest) const;
};

/// The first column of a head, in a map that may have defaults.
[[nodiscard]] std::int64_t first_column(const HeadMap& map, std::int64_t head, std::int64_t heads,
                                        std::int64_t head_dim);

/// An element of a group.
struct GroupElement {
  std::size_t group;
  std::int64_t head, d;
  std::int64_t channel;  // of the convolution, or -1 in a copied group
  std::int64_t column;   // of x
};

/// Calls visit(element) for every element of a row.
template <typename Visit>
void for_each_group_element(const GroupedBackwardCase& problem, const Visit& visit) {
  std::int64_t channel = 0;
  for (std::size_t i = 0; i < problem.groups.size(); ++i) {
    const GroupSpec& group = problem.groups[i];
    for (std::int64_t head = 0; head < group.heads(); ++head) {
      const std::int64_t column = first_column(group.input, head, group.heads(), group.head_dim());
      for (std::int64_t d = 0; d < group.head_dim(); ++d) {
        visit(GroupElement{i, head, d, group.copy ? -1 : channel++, column + d});
      }
    }
  }
}

/// The same case for the same seed, always. Three of four cases are as the CUDA kernels take them.
[[nodiscard]] GroupedBackwardCase make_grouped_backward_case(std::uint64_t seed);

/// As of other cases; "op" is "backward-groups".
[[nodiscard]] std::vector<std::pair<std::string_view, std::string>> traits(
    const GroupedBackwardCase& problem);
[[nodiscard]] TraitValues possible_grouped_backward_traits();

[[nodiscard]] std::string to_string(const GroupedBackwardCase& problem);

using GateGradientBuffers = GateGradientTensors<OptionalBuffer>;

struct GroupedBackwardBuffers {
  BackwardBuffers call;
  std::vector<TensorBuffer> gradients;       // one if they are shared
  std::optional<GateGradientBuffers> gates;  // without b if its memory is that of a

  [[nodiscard]] const TensorBuffer& gradient(std::size_t group) const {
    return gradients[gradients.size() == 1 ? 0 : group];
  }
  /// All that there are.
  [[nodiscard]] std::vector<const TensorBuffer*> tensors() const;
};

/// Memory with the values of the case. Rows without a sequence and columns that nothing reads hold
/// NaN, which must not reach any gradient, and so do gradients before they are written.
[[nodiscard]] GroupedBackwardBuffers make_buffers(const GroupedBackwardCase& problem);

/// Runs the case where the backend works, with a workspace of exactly the size that its plan asks
/// for, less `missing_bytes`; writing beside that is an error.
[[nodiscard]] Status run_case(const GroupedBackwardCase& problem,
                              const GroupedBackwardBuffers& buffers, BackendId backend,
                              std::int64_t missing_bytes = 0);

/// Of a call that was made: `before` it, `after` it. Gradients within the bounds of
/// check_grouped_backward.cpp, those of copied columns bit for bit; rows without a sequence 0; no
/// other byte written, guard bands and columns of no group or head included.
[[nodiscard]] std::optional<std::string> check_gradients(const GroupedBackwardCase& problem,
                                                         const GroupedBackwardBuffers& before,
                                                         const GroupedBackwardBuffers& after);

/// Of a call that was refused: nothing was written.
[[nodiscard]] std::optional<std::string> check_unchanged(const GroupedBackwardBuffers& before,
                                                         const GroupedBackwardBuffers& after);

/// Runs the case on a backend and on the reference backend, and checks the gradients of both.
[[nodiscard]] Verdict check_grouped_backward(const GroupedBackwardCase& problem, BackendId backend);

/// A second run, and one without some of the gradients, give the same bits. Nothing is checked if
/// the backend does not support the call.
[[nodiscard]] std::optional<std::string> check_grouped_backward_repeats(
    const GroupedBackwardCase& problem, BackendId backend);

}  // namespace shortconv::tools::verify
