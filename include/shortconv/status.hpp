#pragma once

#include <string>
#include <utility>

namespace shortconv {

/// Why a call was refused. The C ABI returns the same numbers.
enum class Code : int {
  kOk = 0,
  kInvalidArgument = -1,  ///< the arguments contradict each other or the specification
  kUnsupported = -2,      ///< a valid request that this backend has no kernel for
  kUnavailable = -3,      ///< the backend is not built in, or its device is not there
  kInternal = -4,         ///< a defect of the library
};

/// Result of everything that can fail. A message names the argument, what was expected, what came
/// and why.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  [[nodiscard]] bool ok() const { return code_ == Code::kOk; }
  [[nodiscard]] Code code() const { return code_; }
  [[nodiscard]] const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

}  // namespace shortconv
