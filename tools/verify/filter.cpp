#include "verify/filter.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <initializer_list>

#include "common/error.hpp"
#include "common/text.hpp"
#include "verify/backward_case.hpp"
#include "verify/case.hpp"
#include "verify/commit_case.hpp"
#include "verify/grouped_backward_case.hpp"
#include "verify/grouped_case.hpp"

namespace shortconv::tools::verify {
namespace {

[[noreturn]] void refuse(std::string_view why) {
  throw CommandError(kExitUsage, fmt::format("--only: {}", why));
}

std::vector<std::string> values_of(const TraitValues& possible, std::string_view key) {
  const auto found =
      std::ranges::find(possible, key, [](const auto& trait) { return trait.first; });
  return found == possible.end() ? std::vector<std::string>{} : found->second;
}

bool contains(const std::vector<std::string>& values, const std::string& value) {
  return std::ranges::find(values, value) != values.end();
}

// "2 to 64", or all of them if they are few.
std::string shown(const std::vector<std::string>& values) {
  constexpr std::size_t kFew = 10;
  if (values.size() > kFew) return fmt::format("{} to {}", values.front(), values.back());
  return fmt::format("{}", fmt::join(values, ", "));
}

bool is_possible(const TraitValues& possible, const Filter& filter) {
  return std::ranges::all_of(filter, [&](const auto& wanted) {
    return contains(values_of(possible, wanted.first), wanted.second);
  });
}

/// The keys of all kinds of cases, with the values that any kind gives them.
TraitValues merged(std::initializer_list<TraitValues> kinds) {
  TraitValues all;
  for (const TraitValues& kind : kinds) {
    for (const auto& [key, values] : kind) {
      auto known = std::ranges::find(all, key, [](const auto& trait) { return trait.first; });
      if (known == all.end()) known = all.insert(all.end(), {key, {}});
      for (const std::string& value : values) {
        if (!contains(known->second, value)) known->second.push_back(value);
      }
    }
  }
  return all;
}

std::string keys_of(const TraitValues& possible) {
  std::vector<std::string_view> keys;
  for (const auto& [key, values] : possible) keys.push_back(key);
  return fmt::format("{}", fmt::join(keys, ", "));
}

}  // namespace

Filter parse_filter(const std::vector<std::string>& only) {
  const TraitValues of_calls = possible_traits(), of_commits = possible_commit_traits(),
                    of_gradients = possible_backward_traits(),
                    of_groups = possible_grouped_traits(),
                    of_group_gradients = possible_grouped_backward_traits();
  const TraitValues possible =
      merged({of_calls, of_commits, of_gradients, of_groups, of_group_gradients});
  Filter filter;
  for (const std::string& text : only) {
    const std::size_t equals = text.find('=');
    const std::string key = text.substr(0, equals);
    const std::vector<std::string> values = values_of(possible, key);
    if (equals == std::string::npos || values.empty()) {
      refuse(fmt::format("{} is not KEY=VALUE with one of {}", in_quotes(text), keys_of(possible)));
    }
    const std::string value = text.substr(equals + 1);
    if (!contains(values, value)) {
      refuse(fmt::format("{} is never {}; it is one of {}", key, in_quotes(value), shown(values)));
    }
    for (const auto& [other_key, other] : filter) {
      if (key != other_key || value == other) continue;
      refuse(fmt::format("no case has both {0}={1} and {0}={2}", key, other, value));
    }
    filter.emplace_back(key, value);
  }
  if (!is_possible(of_calls, filter) && !is_possible(of_commits, filter) &&
      !is_possible(of_gradients, filter) && !is_possible(of_groups, filter) &&
      !is_possible(of_group_gradients, filter)) {
    refuse(
        fmt::format("no case has all of {}; commits have only {}; gradients (op=backward) {}; "
                    "groups {}; their gradients {}",
                    fmt::join(only, ", "), keys_of(of_commits), keys_of(of_gradients),
                    keys_of(of_groups), keys_of(of_group_gradients)));
  }
  return filter;
}

bool matches(const std::vector<std::pair<std::string_view, std::string>>& traits,
             const Filter& filter) {
  return std::ranges::all_of(filter, [&](const auto& wanted) {
    return std::ranges::any_of(traits, [&](const auto& trait) {
      return trait.first == wanted.first && trait.second == wanted.second;
    });
  });
}

}  // namespace shortconv::tools::verify
