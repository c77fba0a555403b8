#include "shortconv/violation.hpp"

#include <array>

namespace shortconv {
namespace {

struct Words {
  Violation value;
  std::string_view name;
  std::string_view meaning;
};

constexpr auto kWords = std::to_array<Words>({
    {Violation::kBoundOutside, "query_start_loc outside",
     "An entry is not in [0, tokens]; it was clamped to that."},
    {Violation::kBoundsDecrease, "query_start_loc decreasing",
     "An entry is less than the one before it; the sequence between them counts as empty, and rows "
     "that two sequences claim are undefined."},
    {Violation::kReadSlotOutside, "read slot outside",
     "The pool has no such slot; the sequence was skipped as padding is."},
    {Violation::kWriteSlotOutside, "write slot outside",
     "The pool has no such slot; the final state was not kept."},
    {Violation::kWriteSlotShared, "write slot shared",
     "An earlier live sequence writes the same slot; what the slot holds afterwards is undefined, "
     "and so are the outputs of sequences that resume from it."},
    {Violation::kReadOffsetOutside, "read offset outside",
     "The history would leave the columns of the pool; the offset was clamped."},
    {Violation::kParentNotBefore, "parent not before its token",
     "A draft token's parent is neither -1 nor an earlier token; it was taken for a token without "
     "a parent."},
    {Violation::kSnapshotSlotOutside, "snapshot slot outside",
     "The pool has no such slot; the snapshot was not taken."},
    {Violation::kSnapshotSlotShared, "snapshot slot shared",
     "An earlier row of snapshots has the same slot; what the slot holds afterwards is undefined."},
    {Violation::kWindowSlotOutside, "window slot outside",
     "There is no such slot of windows; none of the sequence were captured."},
    {Violation::kWindowSlotShared, "window slot shared",
     "An earlier live sequence has the same window slot; the windows there are undefined."},
});
static_assert(kWords.size() == kViolations);

}  // namespace

std::string_view name(Violation value) {
  for (const Words& words : kWords) {
    if (words.value == value) return words.name;
  }
  return "?";
}

std::string_view describe(Violation value) {
  for (const Words& words : kWords) {
    if (words.value == value) return words.meaning;
  }
  return "?";
}

}  // namespace shortconv
