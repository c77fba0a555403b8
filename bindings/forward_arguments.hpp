// Arguments of a forward call from Python, with groups or without.
#pragma once

#include <cstdint>
#include <string_view>

#include "arguments.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/arguments.hpp"

namespace shortconv::python {

/// Reads a tensor into the member with this name in the table, then calls check(tensor).
template <typename Visit, typename Check>
bool read_named_tensor(std::string_view name, const TVMFFIAny& value, const Visit& visit_args,
                       const Check& check) {
  bool found = false;
  visit_args([&](const Argument& row, auto& tensor) {
    if (row.name != name) return;
    found = true;
    Arguments::read(name, value, tensor);
    check(tensor);
  });
  return found;
}

template <typename Visit>
bool read_named_tensor(std::string_view name, const TVMFFIAny& value, const Visit& visit_args) {
  return read_named_tensor(name, value, visit_args, [](const auto&) {});
}

/// A forward call as it is read.
struct ForwardCall {
  ForwardArgs args;
  std::int32_t op_and_layouts = 0;
  TVMFFIAny stream{};  // None

  /// The frequent arguments, in this order. Groups have outputs of their own.
  void read_frequent(Arguments& in, bool has_out);
  /// The value of another argument, whose name has been read; false if it is none of this call.
  [[nodiscard]] bool read_named(std::string_view name, Arguments& in);
  /// Applies layouts, once all has been read.
  void apply_layouts();

 private:
  [[nodiscard]] bool has(int layout_or_value) const {
    return (op_and_layouts & layout_or_value) != 0;
  }
  /// Refuses a floating tensor that torch may negate lazily, if the call asks for that. While
  /// tensors are read: to visit all of them again takes 50 ns.
  void check_negation(std::string_view name, const TensorRef& tensor) const;
  void check_negation(std::string_view name, const std::optional<TensorRef>& tensor) const {
    if (tensor) check_negation(name, *tensor);
  }
};

}  // namespace shortconv::python
