#pragma once

#include <stdexcept>
#include <string>

#include "shortconv/status.hpp"

namespace shortconv::tools {

inline constexpr int kExitFailed = 1;  ///< the command ran, and what it checked is not so
inline constexpr int kExitUsage = 2;   ///< the input or an option is wrong, nothing was done

/// Ends a command. `what()` is the line the user sees, the code is what the process returns.
class CommandError : public std::runtime_error {
 public:
  CommandError(int exit_code, const std::string& message)
      : std::runtime_error(message), exit_code_(exit_code) {}

  [[nodiscard]] int exit_code() const { return exit_code_; }

 private:
  int exit_code_;
};

/// For calls of the library that only fail when the user asked for something it cannot do.
inline void require(const Status& status) {
  if (!status.ok()) throw CommandError(kExitUsage, status.message());
}

}  // namespace shortconv::tools
