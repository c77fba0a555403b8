#pragma once

#include <cstdint>
#include <string_view>

#include "shortconv/export.h"

namespace shortconv {

/// What the checked mode (ForwardArgs::violations) reports: values in index tensors that only the
/// device knows, so that no call can refuse them. docs/checked-mode.md has the rules in full.
enum class Violation : std::uint8_t {
  kBoundOutside,         ///< an entry of query_start_loc is not in [0, tokens]
  kBoundsDecrease,       ///< an entry of query_start_loc is less than the one before it
  kReadSlotOutside,      ///< a read slot is not below the number of slots, and not the null slot
  kWriteSlotOutside,     ///< the same for the write slot of a sequence that is not skipped
  kWriteSlotShared,      ///< an earlier live sequence has the same write slot
  kReadOffsetOutside,    ///< a resumed sequence's read offset leaves the columns of the pool
  kParentNotBefore,      ///< a draft token's parent is neither -1 nor a token before it
  kSnapshotSlotOutside,  ///< a snapshot's slot is not below the number of slots, nor the null slot
  kSnapshotSlotShared,   ///< an earlier row of snapshots has the same slot
  kWindowSlotOutside,    ///< a window slot is not below the number of them, nor the null slot
  kWindowSlotShared,     ///< an earlier live sequence has the same window slot
};

inline constexpr int kViolations = 11;

/// The report is an i64 tensor [kViolations, 2]: row v is of Violation v, with these columns.
/// Numbers are those of sequences, of entries for query_start_loc, of rows for snapshots.
inline constexpr int kViolationCount = 0;  ///< how many sequences, entries or rows are concerned
inline constexpr int kViolationFirst = 1;  ///< the lowest number of them, -1 if there is none

[[nodiscard]] SHORTCONV_API std::string_view name(Violation value);

/// What it means for the result of the call, in a sentence.
[[nodiscard]] SHORTCONV_API std::string_view describe(Violation value);

}  // namespace shortconv
