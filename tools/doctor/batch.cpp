#include "doctor/batch.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "common/error.hpp"
#include "common/input_file.hpp"
#include "common/json_text.hpp"
#include "common/text.hpp"

namespace shortconv::tools {
namespace {

using Json = nlohmann::json;

constexpr std::array<std::string_view, 15> kKeys = {
    "tokens",       "query_start_loc", "read_slots",         "write_slots",
    "read_offsets", "snapshots",       "has_initial_state",  "cache_seqlens",
    "slots",        "columns",         "intermediate_slots", "intermediate_slot_count",
    "width",        "base_column",     "null_slot"};

// Values from the file, with messages that point at them.
class Reader {
 public:
  Reader(const Json& object, const std::string& name) : object_(object), name_(name) {
    for (const auto& [key, value] : object.items()) {
      if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end()) {
        fail(fmt::format("unknown key {}, expected {}", in_quotes(key), fmt::join(kKeys, ", ")));
      }
    }
  }

  [[noreturn]] void fail(std::string_view why) const {
    throw CommandError(kExitUsage, fmt::format("{}: {}", name_, why));
  }

  [[nodiscard]] std::optional<std::int64_t> number(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) return std::nullopt;
    return whole_number(*found, key);
  }

  [[nodiscard]] std::optional<std::vector<std::int64_t>> numbers(const char* key) const {
    return list<std::int64_t>(
        key, "whole numbers",
        [this](const Json& value, const std::string& place) { return whole_number(value, place); });
  }

  [[nodiscard]] std::vector<std::array<std::int64_t, 3>> snapshots(const char* key) const {
    using Row = std::array<std::int64_t, 3>;
    const auto rows =
        list<Row>(key, "rows", [this](const Json& value, const std::string& place) -> Row {
          if (!value.is_array() || value.size() != 3) {
            fail(fmt::format("{} is {}, expected [sequence, token, slot]", place, shown(value)));
          }
          return {whole_number(value[0], place + "[0]"), whole_number(value[1], place + "[1]"),
                  whole_number(value[2], place + "[2]")};
        });
    return rows.value_or(std::vector<Row>{});
  }

  [[nodiscard]] std::optional<std::vector<std::uint8_t>> flags(const char* key) const {
    return list<std::uint8_t>(
        key, "booleans", [this](const Json& value, const std::string& place) -> std::uint8_t {
          if (value.is_boolean()) return value.get<bool>();
          if (value == 0 || value == 1) return value == 1;
          fail(fmt::format("{} is {}, expected true or false", place, shown(value)));
        });
  }

 private:
  static std::string shown(const Json& value) {
    constexpr std::size_t kLongest = 40;
    return printable(dump_json(value), kLongest);
  }

  [[nodiscard]] std::int64_t whole_number(const Json& value, const std::string& place) const {
    const bool too_large = value.is_number_unsigned() &&
                           value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max();
    if (!value.is_number_integer() || too_large) {
      fail(fmt::format("{} is {}, expected a whole number of 64 bits", place, shown(value)));
    }
    return value.get<std::int64_t>();
  }

  template <typename T, typename Read>
  [[nodiscard]] std::optional<std::vector<T>> list(const char* key, std::string_view what,
                                                   Read&& read) const {
    const auto found = object_.find(key);
    if (found == object_.end()) return std::nullopt;
    if (!found->is_array()) {
      fail(fmt::format("{} is {}, expected a list of {}", key, shown(*found), what));
    }
    std::vector<T> values;
    for (const Json& value : *found) {
      values.push_back(read(value, fmt::format("{}[{}]", key, values.size())));
    }
    return values;
  }

  const Json& object_;
  const std::string& name_;
};

// As many as just hold these slots; `size` is the key that says how many there are.
std::int64_t named_slots(const Batch& batch, const Reader& reader,
                         const std::vector<std::int64_t>& slots, std::string_view size) {
  std::int64_t count = 0;
  for (const std::int64_t slot : slots) {
    if (slot == batch.null_slot) continue;
    if (slot == std::numeric_limits<std::int64_t>::max()) {
      reader.fail(fmt::format("slot {} is in no pool; name the pool's size as {}", slot, size));
    }
    count = std::max(count, slot + 1);
  }
  return count;
}

// A pool just large enough for the slots that the batch names.
std::int64_t named_slots(const Batch& batch, const Reader& reader) {
  std::vector<std::int64_t> slots = batch.read_slots;
  if (batch.write_slots) {
    slots.insert(slots.end(), batch.write_slots->begin(), batch.write_slots->end());
  }
  for (const auto& row : batch.snapshots) slots.push_back(row[2]);
  return named_slots(batch, reader, slots, "slots");
}

}  // namespace

Batch parse_batch(std::string_view text, const std::string& name) {
  const Json object = parse_json_object<Json>(text, name);
  const Reader reader(object, name);
  Batch batch;
  const auto bounds = reader.numbers("query_start_loc");
  if (!bounds) reader.fail("query_start_loc is missing");
  if (bounds->empty()) reader.fail("query_start_loc is empty, expected sequences + 1 entries");
  batch.query_start_loc = *bounds;
  const auto sequences = static_cast<std::size_t>(batch.sequences());
  const auto check_size = [&](std::string_view key, std::size_t size) {
    if (size == sequences) return;
    reader.fail(fmt::format("{} has {} entries, but query_start_loc has {} sequences", key, size,
                            sequences));
  };

  batch.tokens = reader.number("tokens").value_or(std::max<std::int64_t>(bounds->back(), 0));
  batch.null_slot = reader.number("null_slot");
  if (auto slots = reader.numbers("read_slots")) {
    check_size("read_slots", slots->size());
    batch.read_slots = std::move(*slots);
  } else {
    batch.read_slots.resize(sequences);
    std::iota(batch.read_slots.begin(), batch.read_slots.end(), 0);
  }
  batch.write_slots = reader.numbers("write_slots");
  if (batch.write_slots) check_size("write_slots", batch.write_slots->size());
  batch.read_offsets = reader.numbers("read_offsets");
  if (batch.read_offsets) check_size("read_offsets", batch.read_offsets->size());
  batch.cache_seqlens = reader.numbers("cache_seqlens");
  if (batch.cache_seqlens) check_size("cache_seqlens", batch.cache_seqlens->size());
  batch.has_initial_state =
      reader.flags("has_initial_state").value_or(std::vector<std::uint8_t>(sequences));
  check_size("has_initial_state", batch.has_initial_state.size());

  batch.snapshots = reader.snapshots("snapshots");
  batch.intermediate_slots = reader.numbers("intermediate_slots");
  if (batch.intermediate_slots) check_size("intermediate_slots", batch.intermediate_slots->size());
  const auto windows = reader.number("intermediate_slot_count");
  if (windows) {
    batch.intermediate_slot_count = *windows;
  } else if (batch.intermediate_slots) {
    batch.intermediate_slot_count =
        named_slots(batch, reader, *batch.intermediate_slots, "intermediate_slot_count");
  }

  const auto slots = reader.number("slots");
  batch.slots_given = slots.has_value();
  batch.slots = slots ? *slots : named_slots(batch, reader);
  batch.width = reader.number("width").value_or(batch.width);
  batch.base_column = reader.number("base_column").value_or(0);
  // The library checks width and base_column.
  constexpr std::int64_t kLargest = std::int64_t{1} << 32;
  batch.columns =
      reader.number("columns").value_or(std::clamp<std::int64_t>(batch.width, 1, kLargest) - 1 +
                                        std::clamp<std::int64_t>(batch.base_column, 0, kLargest));
  return batch;
}

Batch load_batch(const std::string& path) {
  return parse_batch(read_input(path), input_name(path));
}

}  // namespace shortconv::tools
