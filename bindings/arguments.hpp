// Arguments of a call from Python: apache-tvm-ffi passes an array of tagged values, read in order.
// Missing values at the end count as None: each None that is passed costs 15 ns.
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

/// Exception for an invalid argument, thrown and caught in this module.
struct BadArgument {
  const char* exception;  ///< name of the Python exception
  std::string message;
};

class Arguments {
 public:
  Arguments(const TVMFFIAny* values, std::int32_t count) : values_(values), left_(count) {}

  [[nodiscard]] bool has_more() const { return left_ > 0; }
  /// None after the last value.
  const TVMFFIAny& next();

  /// Writes in place: a call has twenty tensors of 88 bytes.
  void tensor(std::string_view name, TensorRef& tensor);
  void tensor(std::string_view name, std::optional<TensorRef>& tensor);
  [[nodiscard]] std::optional<std::int64_t> optional_integer(std::string_view name);
  /// `if_none` replaces None; without it None is refused.
  [[nodiscard]] std::int64_t integer(std::string_view name,
                                     std::optional<std::int64_t> if_none = {});
  [[nodiscard]] std::int32_t small_integer(std::string_view name,
                                           std::optional<std::int64_t> if_none = {});
  [[nodiscard]] bool flag(std::string_view name, bool absent = false);
  [[nodiscard]] double number(std::string_view name);

  /// A value by its name in the capability list; `if_none` replaces None.
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

  [[nodiscard]] std::string_view text(std::string_view name) { return text_of(name, next()); }

  static void read(std::string_view name, const TVMFFIAny& value, TensorRef& tensor);
  static void read(std::string_view name, const TVMFFIAny& value, std::optional<TensorRef>& tensor);

  /// The handle of a stream, or an object with one. None: the current stream of the framework of
  /// `tensor`.
  [[nodiscard]] static void* stream_of(std::string_view name, const TVMFFIAny& value,
                                       const TensorRef& tensor);
  [[noreturn]] static void refuse(const char* exception, std::string_view name,
                                  std::string_view text);

 private:
  static std::string_view text_of(std::string_view name, const TVMFFIAny& value);

  const TVMFFIAny* values_;
  std::int32_t left_;
};

}  // namespace shortconv::python
