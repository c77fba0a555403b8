#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace shortconv::tools {

/// The index tensors of one call as an engine wrote them down, with what the file left out filled
/// in.
struct Batch {
  std::int64_t tokens = 0;
  std::vector<std::int64_t> query_start_loc;
  std::vector<std::int64_t> read_slots;
  std::optional<std::vector<std::int64_t>> write_slots;
  std::optional<std::vector<std::int64_t>> read_offsets;
  std::optional<std::vector<std::int64_t>> cache_seqlens;
  std::vector<std::uint8_t> has_initial_state;
  std::vector<std::array<std::int64_t, 3>> snapshots;           ///< rows (sequence, token, slot)
  std::optional<std::vector<std::int64_t>> intermediate_slots;  ///< makes it a verify call
  std::int64_t intermediate_slot_count = 0;
  std::int64_t slots = 0;
  bool slots_given = false;  ///< else as many as the batch names
  std::int64_t columns = 0;
  std::int64_t width = 4;
  std::int64_t base_column = 0;
  std::optional<std::int64_t> null_slot;

  [[nodiscard]] std::int64_t sequences() const {
    return static_cast<std::int64_t>(query_start_loc.size()) - 1;
  }
  [[nodiscard]] bool writes_state() const { return !intermediate_slots || write_slots; }
};

/// `name` is for messages. Throws CommandError for whatever is not a batch.
[[nodiscard]] Batch parse_batch(std::string_view text, const std::string& name);

/// From a file, or standard input for "-".
[[nodiscard]] Batch load_batch(const std::string& path);

}  // namespace shortconv::tools
