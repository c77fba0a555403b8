#include "verify/compare.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/element.hpp"

namespace shortconv::tools {
namespace {

// Of fp32.
constexpr double kUnitRoundoff = 0x1p-24;
constexpr double kSubnormalStep = 0x1p-150;

// Bits of the significand, the leading one included, and the exponent of the smallest subnormal.
struct Format {
  int precision;
  int smallest_exponent;
};

Format format_of(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return {11, -24};
    case DType::kBF16:
      return {8, -133};
    case DType::kF32:
      return {24, -149};
    default:
      return {53, -1074};
  }
}

}  // namespace

double half_ulp(DType dtype, double value) {
  const Format format = format_of(dtype);
  const int spacing =
      value == 0 ? format.smallest_exponent
                 : std::max(std::ilogb(value) - (format.precision - 1), format.smallest_exponent);
  return std::ldexp(0.5, spacing);
}

double rounded_to(DType out, double reference) {
  std::byte element[sizeof(double)];
  store_element(out, element, reference);
  return load_element(out, element);
}

double computing_error(int width, Activation activation, double reference, double magnitude) {
  const double sum = (width + 1) * (kUnitRoundoff * magnitude + kSubnormalStep);
  if (activation == Activation::kNone) return sum;

  constexpr double kLargestSlope = 1.1;        // of silu, at a = 2.4
  constexpr double kSiluRelativeError = 1e-6;  // specification, for |a| <= 80
  return kLargestSlope * sum + kSiluRelativeError * std::fabs(reference) + kSubnormalStep;
}

double epilogue_error(Epilogue epilogue, double error, double operand, double reference) {
  if (epilogue == Epilogue::kNone) return error;
  const double passed = epilogue == Epilogue::kOutputGate ? std::fabs(operand) * error : error;
  return passed + kUnitRoundoff * (std::fabs(reference) + passed) + kSubnormalStep;
}

double error_bound(DType out, int width, Activation activation, double reference,
                   double magnitude) {
  return computing_error(width, activation, reference, magnitude) + half_ulp(out, reference);
}

bool within_error(DType out, double got, double reference, double error) {
  if (std::isnan(reference)) return std::isnan(got);
  if (std::isinf(reference)) return got == reference;
  return rounded_to(out, reference - error) <= got && got <= rounded_to(out, reference + error);
}

bool within_bound(DType out, int width, Activation activation, double got, double reference,
                  double magnitude) {
  return within_error(out, got, reference,
                      computing_error(width, activation, reference, magnitude));
}

bool correctly_rounded(DType out, double got, double reference) {
  const double exact = rounded_to(out, reference);
  return exact == got || (std::isnan(exact) && std::isnan(got));
}

}  // namespace shortconv::tools
