// The checked mode: each rule separately, on unclamped values.
#include "shortconv/violation.hpp"

#include <cstring>

#include "reference/reference.hpp"
#include "reference/tensor_views.hpp"

namespace shortconv::reference {
namespace {

struct Rules : TensorViews {
  bool is_outside(std::int64_t slot, std::int64_t slots) const {
    return p.state.present && slot >= slots && !is_padding(p, slot);
  }
  std::int64_t bound(std::int64_t i) const {
    return load_entry(p.query_start_loc, at.query_start_loc, i);
  }
  /// True if the sequence has tokens and is not padding.
  bool is_live(std::int64_t s) const {
    return p.state.present && length(s) > 0 && is_usable(read_slot(s));
  }
  bool writes(std::int64_t s) const {
    return p.writes_state && is_live(s) && is_usable(write_slot(s));
  }
  bool names_token(std::int64_t row) const {
    const std::int64_t s = snapshot(row, 0), token = snapshot(row, 1);
    return s >= 0 && s < p.sequences && is_live(s) && token >= 0 && token <= length(s);
  }
  /// True if the row is written and not replaced by the final state.
  bool is_taken(std::int64_t row) const {
    const std::int64_t s = snapshot(row, 0), slot = snapshot(row, 2);
    return names_token(row) && is_usable(slot) && !(writes(s) && slot == write_slot(s));
  }

  bool writes_slot(std::int64_t s, std::int64_t slot) const {
    const std::int64_t base = p.base_column * p.state.column_stride * element_bytes(p.state.dtype);
    const bool rolling = p.intermediate_slots.present && p.intermediate_states.has_elements &&
                         at.intermediate_states == static_cast<char*>(at.state) + base;
    return (writes(s) && write_slot(s) == slot) ||
           (rolling && is_live(s) && is_captured(s, 0) && intermediate_slot(s) == slot);
  }
  bool reads_slot(std::int64_t s, std::int64_t slot) const {
    return is_live(s) && continues_from_state(s) && read_slot(s) == slot;
  }
  template <typename Predicate>
  bool any_sequence(Predicate&& predicate) const {
    for (std::int64_t s = 0; s < p.sequences; ++s) {
      if (predicate(s)) return true;
    }
    return false;
  }

  /// `n` is a sequence, an entry of query_start_loc or a row of snapshots.
  bool is_violated(Violation violation, std::int64_t n) const {
    const bool is_entry = p.query_start_loc.present && n <= p.sequences;
    const bool is_sequence = n < p.sequences;
    const bool is_row = n < p.snapshot_count;
    // True if an earlier number has the same slot; slot_of(number) is -1 for none.
    const auto is_shared = [&](auto&& slot_of) {
      const std::int64_t slot = slot_of(n);
      for (std::int64_t earlier = 0; slot >= 0 && earlier < n; ++earlier) {
        if (slot_of(earlier) == slot) return true;
      }
      return false;
    };
    switch (violation) {
      case Violation::kBoundOutside:
        return is_entry && (bound(n) < 0 || bound(n) > p.tokens);
      case Violation::kBoundsDecrease:
        return is_entry && n > 0 && bound(n) < bound(n - 1);
      case Violation::kReadSlotOutside:
        return is_sequence && is_outside(read_slot(n), p.slots);
      case Violation::kWriteSlotOutside:
        return is_sequence && is_usable(read_slot(n)) && is_outside(write_slot(n), p.slots);
      case Violation::kWriteSlotShared:
        return is_sequence &&
               is_shared([&](std::int64_t s) { return writes(s) ? write_slot(s) : -1; });
      case Violation::kReadOffsetOutside: {
        if (!is_sequence || !is_live(n) || !continues_from_state(n)) return false;
        const std::int64_t offset = load_entry(p.read_offsets, at.read_offsets, n);
        return offset < 0 || offset > p.state_columns - (p.width - 1) * p.dilation - p.base_column;
      }
      case Violation::kParentNotBefore:
        if (!p.parents.present || !is_sequence || !is_live(n)) return false;
        for (std::int64_t token = 0; token < length(n); ++token) {
          const std::int64_t parent = this->parent(begin(n), token);
          if (parent < -1 || parent >= token) return true;
        }
        return false;
      case Violation::kSnapshotSlotOutside:
        return is_row && names_token(n) && is_outside(snapshot(n, 2), p.slots);
      case Violation::kSnapshotSlotShared:
        return is_row &&
               is_shared([&](std::int64_t row) { return is_taken(row) ? snapshot(row, 2) : -1; });
      case Violation::kIntermediateSlotOutside:
        return p.intermediate_slots.present && is_sequence && is_usable(read_slot(n)) &&
               is_outside(intermediate_slot(n), p.intermediate_slot_count);
      case Violation::kIntermediateSlotShared:
        return p.intermediate_slots.present && is_sequence && is_shared([&](std::int64_t s) {
                 return is_live(s) && is_captured(s, 0) ? intermediate_slot(s) : -1;
               });
      case Violation::kReadSlotWritten: {
        if (!is_sequence || !is_live(n) || !continues_from_state(n)) return false;
        const std::int64_t slot = read_slot(n);
        return !writes_slot(n, slot) &&
               any_sequence([&](std::int64_t s) { return writes_slot(s, slot); });
      }
      case Violation::kSnapshotSlotInUse:
        return is_row && is_taken(n) && any_sequence([&](std::int64_t s) {
                 const std::int64_t slot = snapshot(n, 2);
                 return s != snapshot(n, 0) && (writes_slot(s, slot) || reads_slot(s, slot));
               });
    }
    return false;
  }
};

}  // namespace

void report_violations(const Problem& p, const TensorPointers& at) {
  const Rules rules{{p, at}};
  for (int v = 0; v < kViolations; ++v) {
    std::int64_t count = 0, first = -1;
    for (std::int64_t n = 0; n < std::max(p.sequences + 1, p.snapshot_count); ++n) {
      if (!rules.is_violated(static_cast<Violation>(v), n)) continue;
      if (count++ == 0) first = n;
    }
    const auto store = [&](int column, std::int64_t value) {
      const std::int64_t offset =
          v * p.violations.entry_stride + column * p.violations.column_stride;
      std::memcpy(static_cast<char*>(at.violations) + offset * element_bytes(DType::kI64), &value,
                  sizeof value);
    };
    store(kViolationCount, count);
    store(kViolationFirst, first);
  }
}

}  // namespace shortconv::reference
