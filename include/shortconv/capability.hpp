#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shortconv/export.h"
#include "shortconv/problem.hpp"

namespace shortconv {

/// A value of an option and its name in messages, on the command line and in JSON.
template <typename T>
struct Named {
  T value;
  std::string_view name;
};

/// Supported values. Dispatch, tests, error messages and the support table enumerate these lists.
struct Capabilities {
  std::span<const int> widths;        ///< with specialized kernels
  std::span<const int> model_widths;  ///< the subset with all kernels on GPUs
  int max_width;                      ///< of the general path
  std::span<const Named<DType>> dtypes;
  std::span<const Named<Activation>> activations;
  std::span<const Named<Epilogue>> epilogues;
  std::span<const Named<Schedule>> schedules;
  std::span<const Named<PaddedRows>> padded_rows;
  std::span<const Named<BackendId>> backends;
};
[[nodiscard]] SHORTCONV_API const Capabilities& capabilities();

/// Names in messages, on the command line and in JSON; empty for values without an enumerator.
[[nodiscard]] SHORTCONV_API std::string_view name(DType value);
[[nodiscard]] SHORTCONV_API std::string_view name(Op value);
[[nodiscard]] SHORTCONV_API std::string_view name(Activation value);
[[nodiscard]] SHORTCONV_API std::string_view name(Epilogue value);
[[nodiscard]] SHORTCONV_API std::string_view name(Schedule value);
[[nodiscard]] SHORTCONV_API std::string_view name(PaddedRows value);
[[nodiscard]] SHORTCONV_API std::string_view name(InitialState value);
[[nodiscard]] SHORTCONV_API std::string_view name(BackendId value);

/// State of one backend in this process, for printing.
struct BackendInfo {
  std::string_view name;
  bool available = false;
  std::string detail;  ///< instruction set or device, or why it is not available
};
[[nodiscard]] SHORTCONV_API std::vector<BackendInfo> backend_info();

}  // namespace shortconv
