#pragma once

#include <cstdint>
#include <initializer_list>

namespace shortconv {

/// Element type. The values are DLPack's type code << 8 | bits.
enum class DType : std::uint16_t {
  kI32 = 0x0020,
  kI64 = 0x0040,
  kU8 = 0x0108,  ///< accepted as bool: older DLPack producers export bool this way
  kF16 = 0x0210,
  kF32 = 0x0220,
  kF64 = 0x0240,
  kBF16 = 0x0410,
  kBool = 0x0608,
};

[[nodiscard]] constexpr std::int64_t element_bytes(DType dtype) {
  return (static_cast<std::int64_t>(dtype) & 0xff) / 8;
}

/// Device of the memory. The values are DLPack's.
enum class DeviceType : std::int32_t { kCpu = 1, kCuda = 2 };

struct Device {
  DeviceType type = DeviceType::kCpu;
  std::int32_t index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

inline constexpr int kMaxDims = 4;

/// Non-owning view of strided memory. Strides are in elements and may be any int64, zero and
/// negative included.
struct TensorRef {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Device device;
  std::int32_t ndim = 0;
  std::int64_t shape[kMaxDims] = {};
  std::int64_t strides[kMaxDims] = {};

  /// A dense row-major view. `shape` has at most kMaxDims entries.
  [[nodiscard]] static TensorRef contiguous(void* data, DType dtype,
                                            std::initializer_list<std::int64_t> shape,
                                            Device device = {}) {
    TensorRef view{.data = data, .dtype = dtype, .device = device};
    for (std::int64_t extent : shape) view.shape[view.ndim++] = extent;
    std::int64_t stride = 1;
    for (int axis = view.ndim - 1; axis >= 0; --axis) {
      view.strides[axis] = stride;
      stride *= view.shape[axis];
    }
    return view;
  }

  /// A view with two axes exchanged: a [channels, tokens] buffer becomes [tokens, channels].
  [[nodiscard]] TensorRef transposed(int first, int second) const {
    TensorRef view = *this;
    view.shape[first] = shape[second];
    view.shape[second] = shape[first];
    view.strides[first] = strides[second];
    view.strides[second] = strides[first];
    return view;
  }
};

}  // namespace shortconv
