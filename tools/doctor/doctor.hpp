#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "doctor/batch.hpp"
#include "shortconv/violation.hpp"

namespace shortconv::tools {

/// The library's report, and which sequences it is about.
struct Diagnosis {
  struct Row {
    std::int64_t count = 0;
    std::int64_t first = -1;
  };
  std::array<Row, kViolations> report{};  ///< by Violation
  /// One bit for each Violation of a sequence. An entry of query_start_loc concerns the sequences
  /// on both sides of it if it is outside, and the one that it ends if it is less than its start. A
  /// row of snapshots concerns its sequence.
  std::vector<std::uint32_t> found;
  /// The first live sequence with the write slot of a later one, for that one; else -1.
  std::vector<std::int64_t> shared_with;
  /// For a sequence that reads a slot which another one writes, the first that does; else -1.
  std::vector<std::int64_t> written_by;

  [[nodiscard]] bool any() const;
  [[nodiscard]] bool has(std::int64_t sequence, Violation violation) const;
};

/// Asks the library. Throws CommandError if it refuses the batch.
[[nodiscard]] Diagnosis diagnose(const Batch& batch);

/// A table of `limit` sequences and those with violations, then the violations.
[[nodiscard]] std::string doctor_text(const Batch& batch, const Diagnosis& diagnosis,
                                      std::int64_t limit);

}  // namespace shortconv::tools
