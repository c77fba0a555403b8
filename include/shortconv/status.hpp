#pragma once

#include <string>
#include <utility>

namespace shortconv {

/// Reason of a failure. The C ABI returns the same numbers.
enum class Code : int {
  kOk = 0,
  kInvalidArgument = -1,  ///< the arguments contradict each other or the specification
  kUnsupported = -2,      ///< valid, but this backend has no kernel for it
  kUnavailable = -3,      ///< the backend is not built in, or it has no device
  kInternal = -4,         ///< a defect of the library
  kOutOfMemory = -5,      ///< the host has no memory left
};

/// Result of a function that can fail. The message names the argument, its value, the expected
/// value and the reason.
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
