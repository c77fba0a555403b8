// Arguments of one call from Python, as apache-tvm-ffi hands them over: a row of tagged values,
// read from left to right. Those that are left out at the end are None: each None that is passed
// costs 15 ns, and most calls need few arguments.
#pragma once

#include <tvm/ffi/c_api.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "shortconv/capability.hpp"
#include "shortconv/tensor.hpp"

namespace shortconv::python {

/// What a bad argument throws, inside this module only.
struct BadArgument {
  const char* exception;  ///< Python's name of it
  std::string message;
};

class Arguments {
 public:
  Arguments(const TVMFFIAny* values, std::int32_t count) : values_(values), left_(count) {}

  /// To be called last: Python and this module must agree on how many there are at most.
  void end() const;

  /// Tensors are written where they are to be: a call has twenty of 88 bytes.
  void tensor(std::string_view name, TensorRef& tensor);
  void tensor(std::string_view name, std::optional<TensorRef>& tensor);
  [[nodiscard]] std::optional<std::int64_t> optional_integer(std::string_view name);
  /// None stands for `if_none`, and is refused without that.
  [[nodiscard]] std::int64_t integer(std::string_view name,
                                     std::optional<std::int64_t> if_none = {});
  [[nodiscard]] std::int32_t small_integer(std::string_view name,
                                           std::optional<std::int64_t> if_none = {});
  [[nodiscard]] bool flag(std::string_view name, bool absent = false);

  /// A value by its name in the capability list. None stands for `if_none`.
  template <typename T>
  [[nodiscard]] T named(std::string_view name, std::span<const Named<T>> list, T if_none) {
    const TVMFFIAny& value = next();
    if (value.type_index == kTVMFFINone) return if_none;
    const std::string_view text = text_of(name, value);
    for (const Named<T>& row : list) {
      if (row.name == text) return row.value;
    }
    std::string names;
    for (const Named<T>& row : list) {
      names += (names.empty() ? "'" : ", '") + std::string(row.name) + "'";
    }
    refuse("ValueError", name, "is '" + std::string(text) + "'; expected " + names);
  }

  /// A stream's handle or an object that has one. None stands for the stream that is current where
  /// `tensor` came from.
  [[nodiscard]] void* stream(std::string_view name, const TensorRef& tensor);

 private:
  const TVMFFIAny& next();
  static void read_tensor(std::string_view name, const TVMFFIAny& value, TensorRef& tensor);
  static std::string_view text_of(std::string_view name, const TVMFFIAny& value);
  [[noreturn]] static void refuse(const char* exception, std::string_view name,
                                  std::string_view text);

  const TVMFFIAny* values_;
  std::int32_t left_;
};

}  // namespace shortconv::python
