#include "shortconv/violation.hpp"

#include <array>

namespace shortconv {
namespace {

struct Row {
  Violation value;
  std::string_view name;
  std::string_view description;
};

constexpr auto kRows = std::to_array<Row>({
    {Violation::kBoundOutside, "query_start_loc outside",
     "An entry is not in [0, tokens]; it was clamped."},
    {Violation::kBoundsDecrease, "query_start_loc decreasing",
     "An entry is less than the previous one; the sequence between them counts as empty, and rows "
     "in two sequences are undefined."},
    {Violation::kReadSlotOutside, "read slot outside",
     "The pool has no such slot; the sequence was skipped like padding."},
    {Violation::kWriteSlotOutside, "write slot outside",
     "The pool has no such slot; the final state was not written."},
    {Violation::kWriteSlotShared, "write slot shared",
     "An earlier live sequence writes the same slot; its contents are undefined, and so are the "
     "outputs of sequences that continue from it."},
    {Violation::kReadOffsetOutside, "read offset outside",
     "The history extends beyond the columns of the pool; the offset was clamped."},
    {Violation::kParentNotBefore, "parent not before its token",
     "The parent of a draft token is neither -1 nor an earlier token; it counts as -1."},
    {Violation::kSnapshotSlotOutside, "snapshot slot outside",
     "The pool has no such slot; the snapshot was not written."},
    {Violation::kSnapshotSlotShared, "snapshot slot shared",
     "An earlier row of snapshots has the same slot; its contents are undefined."},
    {Violation::kIntermediateSlotOutside, "intermediate slot outside",
     "intermediate_states has no such slot; no state of the sequence was written."},
    {Violation::kIntermediateSlotShared, "intermediate slot shared",
     "An earlier live sequence has the same intermediate slot; its contents are undefined."},
    {Violation::kReadSlotWritten, "read slot written",
     "Another sequence of the call writes the slot; the outputs and the final state of the one "
     "that "
     "continues from it are undefined. Write to other slots."},
    {Violation::kSnapshotSlotInUse, "snapshot slot in use",
     "Another sequence of the call reads or writes the slot; its results and the snapshot are "
     "undefined."},
});
static_assert(kRows.size() == kViolations);

}  // namespace

std::string_view name(Violation value) {
  for (const Row& row : kRows) {
    if (row.value == value) return row.name;
  }
  return "?";
}

std::string_view describe(Violation value) {
  for (const Row& row : kRows) {
    if (row.value == value) return row.description;
  }
  return "?";
}

}  // namespace shortconv
