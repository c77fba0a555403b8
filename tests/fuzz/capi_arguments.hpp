// Arguments of the C ABI with memory, made from the input of the fuzzer.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "shortconv/shortconv.h"

namespace shortconv::fuzz {

inline constexpr std::int64_t kMaxBytes = 1 << 16;

class Arguments {
 public:
  explicit Arguments(FuzzedDataProvider& data) : data_(data) {}

  // A tensor with `axes` of the given sizes; now and then with something else about it.
  shortconv_tensor* tensor(const std::vector<std::int64_t>& sizes, std::int32_t dtype) {
    shortconv_tensor view{};
    view.device_type = SHORTCONV_CPU;
    view.dtype = dtype;
    view.ndim = static_cast<std::int32_t>(sizes.size());
    std::vector<int> order(sizes.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    if (data_.ConsumeBool() && order.size() > 1) std::swap(order[0], order[order.size() - 1]);
    std::int64_t stride = 1;
    for (std::size_t i = sizes.size(); i-- > 0;) {
      const int axis = order[i];
      view.shape[axis] = sizes[axis];
      view.strides[axis] = stride;
      stride = stride * sizes[axis] + data_.ConsumeIntegralInRange<int>(0, 3) / 3;
    }
    if (data_.ConsumeIntegralInRange<int>(0, 31) == 0) disturb(view);
    allocate(view);
    views_.push_back(view);
    return &views_.back();
  }

  // Of the last tensor made: all entries of one axis, or one column of two.
  void fill_indices(shortconv_tensor* view, std::int64_t low, std::int64_t high,
                    std::int64_t column = 0) {
    if (view == nullptr || view->data == nullptr || view->ndim < 1 || view->ndim > 2) return;
    const std::int64_t bytes = (view->dtype & 0xff) / 8;
    if (bytes != 4 && bytes != 8) return;  // disturbed
    const std::int64_t first = view->ndim == 2 ? column * view->strides[1] : 0;
    for (std::int64_t i = 0; i < view->shape[0]; ++i) {
      std::int64_t value = data_.ConsumeIntegralInRange<std::int64_t>(low, high);
      if (data_.ConsumeIntegralInRange<int>(0, 63) == 0)
        value = data_.ConsumeIntegral<std::int64_t>();
      const std::int64_t at = (first + i * view->strides[0] - lowest_) * bytes;
      if (at < 0 || at + bytes > last_bytes_) return;
      std::memcpy(static_cast<char*>(memory_.back()) + at, &value, static_cast<std::size_t>(bytes));
    }
  }

  ~Arguments() {
    for (void* block : memory_) std::free(block);
  }

 private:
  void disturb(shortconv_tensor& view) {
    const int axis = data_.ConsumeIntegralInRange<int>(0, 3);
    switch (data_.ConsumeIntegralInRange<int>(0, 5)) {
      case 0:
        view.shape[axis] = data_.ConsumeIntegral<std::int64_t>();
        break;
      case 1:
        view.strides[axis] = data_.ConsumeIntegral<std::int64_t>();
        break;
      case 2:
        view.strides[axis] = -view.strides[axis];
        break;
      case 3:
        view.ndim = data_.ConsumeIntegral<std::int32_t>();
        break;
      case 4:
        view.dtype = data_.ConsumeIntegral<std::int32_t>();
        break;
      default:
        view.device_type = data_.ConsumeIntegral<std::int32_t>();
        break;
    }
  }

  // Exactly the memory that shape and strides reach, or none if that is absurd.
  void allocate(shortconv_tensor& view) {
    view.data = nullptr;
    lowest_ = 0;
    last_bytes_ = 0;
    if (view.ndim < 0 || view.ndim > SHORTCONV_MAX_DIMS) return;
    __int128 low = 0, high = 0;
    for (int axis = 0; axis < view.ndim; ++axis) {
      if (view.shape[axis] <= 0) return;
      const __int128 reach = static_cast<__int128>(view.shape[axis] - 1) * view.strides[axis];
      (reach < 0 ? low : high) += reach;
    }
    const std::int64_t bytes = (view.dtype & 0xff) / 8;
    if (bytes <= 0 || (high - low + 1) * bytes > kMaxBytes) return;
    last_bytes_ = static_cast<std::int64_t>(high - low + 1) * bytes;
    lowest_ = static_cast<std::int64_t>(low);
    void* block = std::malloc(static_cast<std::size_t>(last_bytes_));
    std::memset(block, data_.ConsumeIntegral<std::uint8_t>(),
                static_cast<std::size_t>(last_bytes_));
    memory_.push_back(block);
    view.data = static_cast<char*>(block) - lowest_ * bytes;
  }

  FuzzedDataProvider& data_;
  std::deque<shortconv_tensor> views_;
  std::vector<void*> memory_;
  std::int64_t lowest_ = 0;
  std::int64_t last_bytes_ = 0;
};

/// A call with groups, its gradients, the gates and a norm.
void groups(FuzzedDataProvider& data);

}  // namespace shortconv::fuzz
