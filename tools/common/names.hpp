#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/error.hpp"
#include "common/text.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::tools {

/// "flat, block-list, sequence-grid"
template <typename T>
[[nodiscard]] std::string list_names(std::span<const Named<T>> values) {
  std::string text;
  for (const Named<T>& entry : values) {
    if (!text.empty()) text += ", ";
    text += entry.name;
  }
  return text;
}

/// The value that `text` names, or a CommandError that lists what there is.
template <typename T>
[[nodiscard]] T parse_name(std::span<const Named<T>> values, std::string_view option,
                           std::string_view text) {
  for (const Named<T>& entry : values) {
    if (entry.name == text) return entry.value;
  }
  throw CommandError(kExitUsage, std::string(option) + ": " + in_quotes(text) + " is not one of " +
                                     list_names(values));
}

/// Refuses a backend that is not built in or whose device is not there, in its own words.
void require_available(BackendId backend);

/// "--compare a,b" without empty parts.
[[nodiscard]] std::vector<std::string> split_commas(std::string_view text);

}  // namespace shortconv::tools
