// The checked mode on the CPU: counts invalid values of index tensors. One thread reads each index
// tensor once, and again where shared slots are suspected.
#include "op/violation.hpp"

#include <array>
#include <cstring>

#include "cpu/backend.hpp"

namespace shortconv::cpu {
namespace {

// Finds numbers with the slot of an earlier number. A list of all slots would require an
// allocation. Instead slots that are equal modulo kBits share one bit; if it is set, a scan over
// the earlier numbers decides. Distinct slots of a pool of up to kBits slots need no scan; the
// worst case is O(numbers^2).
class SeenSlots {
 public:
  /// Whether an earlier number has the slot of this one. slot_of(number) is a slot or -1.
  template <typename SlotOf>
  bool shared_with_earlier(std::int64_t number, SlotOf&& slot_of) {
    const std::int64_t slot = slot_of(number);
    if (!add(slot)) return false;
    return any_has(slot, number, slot_of);
  }

  /// False if the slot cannot have been added before.
  bool add(std::int64_t slot) {
    if (slot < 0) return false;
    std::uint64_t& word = seen_[static_cast<std::size_t>(slot % kBits / 64)];
    const std::uint64_t bit = std::uint64_t{1} << (slot % 64);
    const bool seen = (word & bit) != 0;
    word |= bit;
    return seen;
  }
  [[nodiscard]] bool may_have(std::int64_t slot) const {
    return slot >= 0 &&
           (seen_[static_cast<std::size_t>(slot % kBits / 64)] >> (slot % 64) & 1) != 0;
  }

  /// Whether one of the numbers below `end` has the slot.
  template <typename SlotOf>
  static bool any_has(std::int64_t slot, std::int64_t end, SlotOf&& slot_of) {
    for (std::int64_t number = 0; number < end; ++number) {
      if (slot_of(number) == slot) return true;
    }
    return false;
  }

 private:
  static constexpr std::int64_t kBits = 65536;  // 8 KiB on the stack
  std::array<std::uint64_t, kBits / 64> seen_{};
};

}  // namespace

void report_violations(const Problem& p, const TensorPointers& at) {
  std::array<std::int64_t, kViolations> counts{}, firsts;
  firsts.fill(-1);
  SeenSlots written, intermediate, snapshots, changed, used;
  const auto written_slot = [&](std::int64_t s) { return live_write_slot(p, at, s); };
  const auto intermediate_slot = [&](std::int64_t s) { return live_intermediate_slot(p, at, s); };
  const auto snapshot_slot = [&](std::int64_t row) { return taken_snapshot_slot(p, at, row); };
  const bool check_reads = may_write_other_slots(p, at), rolling = captures_in_state(p, at);
  for (std::int64_t s = 0; check_reads && s < p.sequences; ++s) {
    changed.add(written_slot(s));
    if (rolling) changed.add(intermediate_slot(s));
  }
  for (std::int64_t s = 0; p.snapshot_count > 0 && s < p.sequences; ++s) {
    used.add(written_slot(s));
    used.add(live_read_slot(p, at, s));
  }
  for (std::int64_t number = 0; number < violation_numbers(p); ++number) {
    std::uint32_t found = violations_at(p, at, number);
    if (number < p.sequences && written.shared_with_earlier(number, written_slot)) {
      found |= bit_of(Violation::kWriteSlotShared);
    }
    if (p.intermediate_slots.present && number < p.sequences &&
        intermediate.shared_with_earlier(number, intermediate_slot)) {
      found |= bit_of(Violation::kIntermediateSlotShared);
    }
    if (number < p.snapshot_count && snapshots.shared_with_earlier(number, snapshot_slot)) {
      found |= bit_of(Violation::kSnapshotSlotShared);
    }
    if (check_reads && number < p.sequences) {
      const std::int64_t slot = kept_read_slot(p, at, number);
      if (changed.may_have(slot) &&
          (SeenSlots::any_has(slot, p.sequences, written_slot) ||
           (rolling && SeenSlots::any_has(slot, p.sequences, intermediate_slot)))) {
        found |= bit_of(Violation::kReadSlotWritten);
      }
    }
    if (number < p.snapshot_count) {
      const std::int64_t slot = snapshot_slot(number);
      const std::int64_t owner = snapshot_at(p, at, number).sequence;
      const auto slot_of_another = [&](std::int64_t s) {
        return s == owner ? -1 : written_slot(s);
      };
      const auto read_by_another = [&](std::int64_t s) {
        return s == owner ? -1 : live_read_slot(p, at, s);
      };
      if (used.may_have(slot) && (SeenSlots::any_has(slot, p.sequences, slot_of_another) ||
                                  SeenSlots::any_has(slot, p.sequences, read_by_another))) {
        found |= bit_of(Violation::kSnapshotSlotInUse);
      }
    }
    for (std::size_t v = 0; found != 0; ++v, found >>= 1) {
      if ((found & 1) == 0) continue;
      if (counts[v]++ == 0) firsts[v] = number;
    }
  }
  const auto store = [&](std::int64_t violation, std::int64_t column, std::int64_t value) {
    const std::int64_t offset =
        violation * p.violations.entry_stride + column * p.violations.column_stride;
    // Tensors on the host may have any alignment.
    std::memcpy(
        static_cast<char*>(at.violations) + offset * static_cast<std::int64_t>(sizeof value),
        &value, sizeof value);
  };
  for (std::int64_t v = 0; v < kViolations; ++v) {
    store(v, kViolationCount, counts[static_cast<std::size_t>(v)]);
    store(v, kViolationFirst, firsts[static_cast<std::size_t>(v)]);
  }
}

}  // namespace shortconv::cpu
