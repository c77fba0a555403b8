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
class EarlierSlots {
 public:
  /// slot_of(number) is a slot or -1.
  template <typename SlotOf>
  bool shared_with_earlier(std::int64_t number, SlotOf&& slot_of) {
    const std::int64_t slot = slot_of(number);
    if (slot < 0) return false;
    std::uint64_t& word = seen_[static_cast<std::size_t>(slot % kBits / 64)];
    const std::uint64_t bit = std::uint64_t{1} << (slot % 64);
    const bool seen = (word & bit) != 0;
    word |= bit;
    if (!seen) return false;
    for (std::int64_t earlier = 0; earlier < number; ++earlier) {
      if (slot_of(earlier) == slot) return true;
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
  EarlierSlots written, intermediate, snapshots;
  const auto written_slot = [&](std::int64_t s) { return live_write_slot(p, at, s); };
  const auto intermediate_slot = [&](std::int64_t s) { return live_intermediate_slot(p, at, s); };
  const auto snapshot_slot = [&](std::int64_t row) { return taken_snapshot_slot(p, at, row); };
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
