// A random commit, and its check against the reference backend.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shortconv/plan.hpp"
#include "verify/case.hpp"
#include "verify/check.hpp"
#include "verify/layout.hpp"

namespace shortconv::tools::verify {

enum class CommitForm { kDense, kOverlapping, kPacked, kPackedWindows };

struct CommitCase {
  std::uint64_t seed = 0;
  CommitForm form = CommitForm::kDense;
  int width = 4;
  int threads = 1;
  TensorSpec windows, state;
  std::int64_t tokens = 0;  // that have a window: of each sequence, packed in all
  std::int64_t base_column = 0;
  std::optional<std::int64_t> null_slot;
  IndexTensor accepted;
  std::optional<IndexTensor> slots, second_slots, query_start_loc;

  [[nodiscard]] std::int64_t sequences() const { return accepted.spec.shape[0]; }
  [[nodiscard]] bool packed() const { return query_start_loc.has_value(); }
};

/// The same case for the same seed, always.
[[nodiscard]] CommitCase make_commit_case(std::uint64_t seed,
                                          std::span<const std::uint8_t> choices = {});

/// As of other cases; "op" is "commit".
[[nodiscard]] std::vector<std::pair<std::string_view, std::string>> traits(
    const CommitCase& problem);

[[nodiscard]] TraitValues possible_commit_traits();

[[nodiscard]] std::string to_string(const CommitCase& problem);

/// The pool bit for bit, and no other byte written. Then the same with index values that lead
/// nowhere: nothing outside the pool may be written.
[[nodiscard]] Verdict check_commit(const CommitCase& problem, BackendId backend);

}  // namespace shortconv::tools::verify
