#pragma once

#include <cstdint>
#include <string_view>

#include "shortconv/export.h"

namespace shortconv {

/// Invalid values in index tensors, reported by the checked mode (Options::violations). They are in
/// device memory, so a call cannot refuse them. docs/checked-mode.md gives the complete rules.
enum class Violation : std::uint8_t {
  kBoundOutside,         ///< an entry of query_start_loc is not in [0, tokens]
  kBoundsDecrease,       ///< an entry of query_start_loc is less than the previous one
  kReadSlotOutside,      ///< a read slot is >= the number of slots and not the null slot
  kWriteSlotOutside,     ///< the same for the write slot of a sequence that is not skipped
  kWriteSlotShared,      ///< an earlier live sequence has the same write slot
  kReadOffsetOutside,    ///< a sequence continues from a history beyond the columns of the pool
  kParentNotBefore,      ///< the parent of a draft token is neither -1 nor an earlier token
  kSnapshotSlotOutside,  ///< the slot of a snapshot is >= the number of slots and not the null slot
  kSnapshotSlotShared,   ///< an earlier row of snapshots has the same slot
  kIntermediateSlotOutside,  ///< an intermediate slot is >= their number and not the null slot
  kIntermediateSlotShared,   ///< an earlier live sequence has the same intermediate slot
  kReadSlotWritten,          ///< a sequence continues from a slot that another sequence writes
  kSnapshotSlotInUse,        ///< another sequence reads or writes the slot of a snapshot
};

inline constexpr int kViolations = 13;

/// The report is an i64 tensor [kViolations, 2]: row v belongs to Violation v, with these columns.
/// A number is a sequence, an entry of query_start_loc or a row of snapshots.
inline constexpr int kViolationCount = 0;  ///< how many sequences, entries or rows violate the rule
inline constexpr int kViolationFirst = 1;  ///< the lowest of these numbers, -1 for none

[[nodiscard]] SHORTCONV_API std::string_view name(Violation value);

/// One sentence: the violation and its effect on the results of the call.
[[nodiscard]] SHORTCONV_API std::string_view describe(Violation value);

}  // namespace shortconv
