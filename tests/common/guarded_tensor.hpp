// Tensors in host memory with guard bands, in any layout, for tests that compare whole memories.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "shortconv/tensor.hpp"

namespace shortconv {

enum class PoolLayout { kChannelInnermost, kWindowInnermost, kStrided };

/// Memory of a tensor with bytes of ones, NaN in every type, before, between and behind.
struct GuardedTensor {
  static constexpr std::int64_t kGuard = 64;
  std::vector<std::uint8_t> memory;
  std::int64_t first = 0;  // byte of the element with all indices 0
  TensorRef view;

  /// The last two axes exchange their places in memory where the window is innermost. kStrided
  /// leaves gaps everywhere and runs backwards along the channels.
  GuardedTensor(DType dtype, std::vector<std::int64_t> shape, PoolLayout layout) {
    const auto axes = static_cast<int>(shape.size());
    std::vector<int> order(shape.size());  // slowest first
    for (int axis = 0; axis < axes; ++axis) order[axis] = axis;
    if (layout == PoolLayout::kWindowInnermost) std::swap(order[axes - 2], order[axes - 1]);
    view.dtype = dtype;
    view.ndim = axes;
    const bool strided = layout == PoolLayout::kStrided;
    std::int64_t stride = strided ? 2 : 1;
    for (int place = axes - 1; place >= 0; --place) {
      const int axis = order[place];
      view.shape[axis] = shape[axis];
      view.strides[axis] = stride;
      stride = stride * shape[axis] + (strided ? 3 : 0);
    }
    first = kGuard;
    if (strided) {
      first += (shape[axes - 1] - 1) * view.strides[axes - 1] * element_bytes(dtype);
      view.strides[axes - 1] = -view.strides[axes - 1];
    }
    memory.assign(static_cast<std::size_t>(stride * element_bytes(dtype) + 2 * kGuard), 0xff);
  }

  [[nodiscard]] TensorRef at(void* base, Device device = {}) const {
    TensorRef tensor = view;
    tensor.data = static_cast<char*>(base) + first;
    tensor.device = device;
    return tensor;
  }
  [[nodiscard]] std::uint8_t* element(std::array<std::int64_t, 4> index) {
    std::int64_t offset = 0;
    for (int axis = 0; axis < view.ndim; ++axis) offset += index[axis] * view.strides[axis];
    return memory.data() + first + offset * element_bytes(view.dtype);
  }
  /// Of an index tensor.
  void set(std::array<std::int64_t, 4> index, std::int64_t value) {
    const auto narrow = static_cast<std::int32_t>(value);
    if (view.dtype == DType::kI64) {
      std::memcpy(element(index), &value, sizeof value);
    } else {
      std::memcpy(element(index), &narrow, sizeof narrow);
    }
  }
};

/// Index values as i32 or i64, with gaps where `stride` is not 1.
inline GuardedTensor index_tensor(const std::vector<std::int64_t>& values, DType dtype,
                                  bool strided) {
  GuardedTensor tensor(dtype, {static_cast<std::int64_t>(values.size())},
                       strided ? PoolLayout::kStrided : PoolLayout::kChannelInnermost);
  for (std::size_t i = 0; i < values.size(); ++i) {
    tensor.set({static_cast<std::int64_t>(i)}, values[i]);
  }
  return tensor;
}

/// The same with two axes; `values` has the rows one after the other.
inline GuardedTensor index_table(const std::vector<std::int64_t>& values, std::int64_t rows,
                                 std::int64_t columns, DType dtype, PoolLayout layout) {
  GuardedTensor tensor(dtype, {rows, columns}, layout);
  for (std::int64_t i = 0; i < rows * columns; ++i) {
    tensor.set({i / columns, i % columns}, values[i]);
  }
  return tensor;
}

}  // namespace shortconv
