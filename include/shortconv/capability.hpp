#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shortconv/export.h"
#include "shortconv/problem.hpp"

namespace shortconv {

/// A value of an option and the name that messages, the command line and JSON use for it.
template <typename T>
struct Named {
  T value;
  std::string_view name;
};

/// What the library can do. Dispatch, tests, error texts and the support table enumerate these
/// lists.
struct Capabilities {
  std::span<const int> widths;        ///< specialised
  std::span<const int> model_widths;  ///< those of them for which a GPU has all kernels
  int max_width;                      ///< the general path goes up to here
  std::span<const Named<DType>> dtypes;
  std::span<const Named<Activation>> activations;
  std::span<const Named<Epilogue>> epilogues;
  std::span<const Named<Schedule>> schedules;
  std::span<const Named<PaddedRows>> padded_rows;
  std::span<const Named<BackendId>> backends;
};
[[nodiscard]] SHORTCONV_API const Capabilities& capabilities();

[[nodiscard]] SHORTCONV_API std::string_view name(DType value);
[[nodiscard]] SHORTCONV_API std::string_view name(Activation value);
[[nodiscard]] SHORTCONV_API std::string_view name(Epilogue value);
[[nodiscard]] SHORTCONV_API std::string_view name(Schedule value);
[[nodiscard]] SHORTCONV_API std::string_view name(PaddedRows value);
[[nodiscard]] SHORTCONV_API std::string_view name(BackendId value);

/// State of one backend in this process, in words fit to print.
struct BackendInfo {
  std::string_view name;
  bool available = false;
  std::string detail;  ///< instruction set or device, or why it is not available
};
[[nodiscard]] SHORTCONV_API std::vector<BackendInfo> backend_info();

}  // namespace shortconv
