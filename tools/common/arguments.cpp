#include "common/arguments.hpp"

namespace shortconv::tools {

std::vector<std::string> given_arguments(const CLI::App& command) {
  std::vector<std::string> arguments{command.get_name()};
  for (const CLI::Option* option : command.get_options()) {
    if (option->count() == 0) continue;
    arguments.push_back(option->get_name());
    const bool is_flag = option->get_expected_max() == 0;
    if (is_flag) continue;
    for (const std::string& value : option->results()) arguments.push_back(value);
  }
  return arguments;
}

}  // namespace shortconv::tools
