// One case on one backend, held against the reference backend.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/random.hpp"
#include "verify/buffers.hpp"
#include "verify/case.hpp"

namespace shortconv::tools::verify {

struct Verdict {
  std::optional<std::string> failure;      // what is wrong, and where first
  std::optional<std::string> unsupported;  // the backend's words; nothing was checked
  std::int64_t outputs = 0;                // computed elements
  std::int64_t correctly_rounded = 0;
};

/// Outputs within the bound of compare.hpp and non-finite where the reference is; rows of skipped
/// sequences and outside all sequences as the policy says; states, windows and snapshots bit for
/// bit; the report of the checked mode word for word; no other byte written, guard bands included.
[[nodiscard]] Verdict check_case(const Case& problem, BackendId backend);

/// The same for a call that was made already: `before` it, `after` it.
[[nodiscard]] Verdict check_result(const Case& problem, const CaseBuffers& before,
                                   const CaseBuffers& after);

/// Runs the case with bounds, slots, offsets and lists that contradict each other or lead nowhere.
/// The results mean nothing, but nothing outside the tensors may be written, and the report of the
/// checked mode is that of the reference.
[[nodiscard]] std::optional<std::string> check_bad_values(const Case& problem, BackendId backend);

/// The sequence that computes each row, or -1 for rows that follow the padding policy.
[[nodiscard]] std::vector<std::int64_t> owners_of_rows(const Case& problem);

/// "out row 12 (sequence 3, token 4), channel 17"
[[nodiscard]] std::string locate_row(const Case& problem, std::int64_t row, std::int64_t channel);

/// Whether a byte was written that belongs to no element, guard bands included.
[[nodiscard]] std::optional<std::string> check_gaps(std::string_view label,
                                                    const TensorBuffer& before,
                                                    const TensorBuffer& after);

/// Whether anything was written.
[[nodiscard]] std::optional<std::string> check_unchanged(std::string_view label,
                                                         const std::optional<TensorBuffer>& before,
                                                         const std::optional<TensorBuffer>& after);

/// Replaces some entries by what a careless caller may leave there.
void scramble(Random& random, const std::optional<TensorBuffer>& index, std::int64_t limit);

/// The first difference between two tensors of one shape, or nothing; `axes` is for the message.
/// Differing NaNs are the same if `any_nan`.
[[nodiscard]] std::optional<std::string> compare_elements(std::string_view axes,
                                                          const TensorBuffer& got,
                                                          const TensorBuffer& expected,
                                                          bool any_nan);

/// The first difference between two pools of one shape, or nothing. Differing NaNs are the same if
/// `any_nan`.
[[nodiscard]] std::optional<std::string> compare_states(const TensorBuffer& got,
                                                        const TensorBuffer& expected, bool any_nan);
[[nodiscard]] std::optional<std::string> compare_windows(const TensorBuffer& got,
                                                         const TensorBuffer& expected,
                                                         bool any_nan);

/// Whether which NaN a state or a window has is left open: inputs are converted or multiplied.
[[nodiscard]] bool any_nan(const Case& problem);

}  // namespace shortconv::tools::verify
