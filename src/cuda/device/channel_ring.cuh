// Rows of the backward kernels with any strides: copies of single channels through shared memory.
#pragma once

#include <cstdint>

#include "cuda/backward_params.hpp"
#include "cuda/device/backward_rows.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/memory.cuh"

namespace shortconv::cuda {

/// Copies the rows of a strip, 32 channels of them, from global to shared memory, in stages of 64
/// bytes of each channel. A lane computes one channel, but copies parts of several: which ones
/// depends on the strides. Gradients of x replace x and return to global memory in whole stages.
/// The last gradients of a stage need rows of the next one, so x has three stages: the one before
/// the current one, the current one and the next one. grad_out has the last two. A warp has a ring.
template <typename Shape>
class ChannelRing {
 public:
  using T = typename Shape::T;
  using Values = typename Shape::Values;
  static constexpr int kElementBytes = static_cast<int>(sizeof(T));
  static constexpr int kRunBytes = 64;                     // of a channel in a stage
  static constexpr int kRows = kRunBytes / kElementBytes;  // of a stage
  static constexpr int kChunk = 8;                         // rows that a lane computes at a time
  static constexpr int kChunkWords = kChunk * kElementBytes / 4;
  /// From one channel to the next. 16 bytes more than a run, so that 8 lanes access 16 bytes each
  /// in different banks.
  static constexpr int kPitch = kRunBytes + 16;
  static constexpr int kTensorBytes = 32 * kPitch;
  static constexpr int kBytes = 5 * kTensorBytes;
  using Chunk = std::uint32_t[kChunkWords];

  /// Rows [first, limit) of the channels from `channel` on.
  __device__ ChannelRing(const BackwardKernelParams& params, char* memory, int first, int limit,
                         int channel)
      : params_(params), next_(first), limit_(limit), channel_(channel) {
    const SharedAddress begin = shared_address(memory);
    previous_x_ = begin;
    x_ = begin + kTensorBytes;
    next_x_ = begin + 2 * kTensorBytes;
    grad_out_ = begin + 3 * kTensorBytes;
    next_grad_out_ = begin + 4 * kTensorBytes;
    lane_ = static_cast<int>(threadIdx.x % 32);
  }

  /// Makes the next stage the current one, and issues the copies of the one after it, if it has
  /// rows. The first call only issues those of the first stage.
  __device__ void receive() {
    wait_for_copies<0>();
    __syncwarp();
    const SharedAddress free_x = previous_x_, free_grad_out = grad_out_;
    previous_x_ = x_, x_ = next_x_, next_x_ = free_x;
    grad_out_ = next_grad_out_, next_grad_out_ = free_grad_out;
    if (next_ < limit_) {
#pragma unroll 1
      for (int tensor = 0; tensor < 2; ++tensor) {
        issue_tensor(tensor == 0 ? params_.x : params_.grad_out,
                     tensor == 0 ? next_x_ : next_grad_out_);
      }
    }
    commit_copies();
    next_ += kRows;
  }

  /// The lane's channel of row `row` of the current stage; tensor 0 is x, 1 grad_out.
  __device__ void load(int tensor, int row, Values& values) const {
    values[0] = to_f32(load_shared_element<T>((tensor == 0 ? x_ : grad_out_) + place(lane_, row)));
  }

  /// The lane's channel of rows [row, row + kChunk) of the current stage.
  __device__ void load_chunk(int tensor, int row, Chunk& words) const {
    const SharedAddress from = (tensor == 0 ? x_ : grad_out_) + place(lane_, row);
#pragma unroll
    for (int i = 0; i < kChunkWords; i += 4) {
      load_shared_words(from + 4 * i, reinterpret_cast<std::uint32_t(&)[4]>(words[i]));
    }
  }

  /// Replaces x of row `stage_row` of the current stage; negative rows are in the one before it.
  __device__ void store_gradient(int /*row*/, int stage_row, int /*channel*/,
                                 const Values& values) const {
    store_shared_element(place_of_gradient(stage_row), from_f32<T>(values[0]));
  }

  /// As store_gradient, of the rows [row, row + kChunk) of a stage.
  __device__ void store_chunk(int row, const Chunk& words) const {
    const SharedAddress to = place_of_gradient(row);
#pragma unroll
    for (int i = 0; i < kChunkWords; i += 4) {
      store_shared_words(to + 4 * i, reinterpret_cast<const std::uint32_t(&)[4]>(words[i]));
    }
  }

  /// Stores the gradients of rows [row, end) of the current stage, whose first row is `row`, or of
  /// the one before it.
  __device__ void store_stage(bool is_previous, int row, int end) const {
    if (params_.grad_x.data == nullptr) return;
    __syncwarp();
    const SharedAddress from = is_previous ? previous_x_ : x_;
    if (params_.copy_bytes == 16) {
      store_vectors<16>(from, row, end);
    } else if (params_.copy_bytes == 4) {
      store_vectors<4>(from, row, end);
    } else {
      store_elements(from, row, end);
    }
  }

 private:
  __device__ SharedAddress place_of_gradient(int row) const {
    return row < 0 ? previous_x_ + place(lane_, row + kRows) : x_ + place(lane_, row);
  }
  __device__ static int place(int channel, int row) {
    return channel * kPitch + row * kElementBytes;
  }

  __device__ void issue_tensor(const BackwardRows& rows, SharedAddress to) const {
    if (params_.copy_bytes == 16) {
      copy_vectors<16>(rows, to);
    } else if (params_.copy_bytes == 4) {
      copy_vectors<4>(rows, to);
    } else {
      copy_elements(rows, to);
    }
  }

  // kRunBytes / kVectorBytes lanes copy the run of a channel, so an instruction copies kStep
  // channels.
  template <int kVectorBytes>
  static constexpr int kStep = 32 * kVectorBytes / kRunBytes;
  template <int kVectorBytes>
  static constexpr int kVectorRows = kVectorBytes / kElementBytes;

  /// The first row of the lane's vectors.
  template <int kVectorBytes>
  __device__ int row_of_lane() const {
    return lane_ % (kRunBytes / kVectorBytes) * kVectorRows<kVectorBytes>;
  }
  /// The address of that row in the lane's first channel, or in the last one.
  template <int kVectorBytes>
  __device__ char* vector_of_lane(const BackwardRows& rows, int row) const {
    const int channel = channel_ + lane_ / (kRunBytes / kVectorBytes);
    return rows_after(row_at(params_, rows, row), stride_of(rows),
                      min(channel, params_.channels - 1));
  }
  __device__ static std::int32_t stride_of(const BackwardRows& rows) {
    return static_cast<std::int32_t>(rows.channel_stride_bytes);
  }

  /// What is after the last token becomes 0. Lanes beyond the last channel copy the last one.
  template <int kVectorBytes>
  __device__ void copy_vectors(const BackwardRows& rows, SharedAddress to) const {
    const int i = row_of_lane<kVectorBytes>();
    if (next_ + i >= limit_) return;
    const char* from = vector_of_lane<kVectorBytes>(rows, next_ + i);
    to += place(lane_ / (kRunBytes / kVectorBytes), i);
    const int bytes = min((params_.tokens - next_ - i) * kElementBytes, kVectorBytes);
    const int last = params_.channels - 1 - channel_;
    if (last >= 31) {
#pragma unroll
      for (int c = 0; c < 32; c += kStep<kVectorBytes>) {
        copy_async_first<kVectorBytes>(to + c * kPitch, nth_row(from, stride_of(rows), c), bytes);
      }
      return;
    }
    const int first = lane_ / (kRunBytes / kVectorBytes);
#pragma unroll 1
    for (int c = 0; c < 32; c += kStep<kVectorBytes>) {
      copy_async_first<kVectorBytes>(
          to + c * kPitch, rows_after(from, stride_of(rows), min(c, max(last - first, 0))), bytes);
    }
  }

  template <int kVectorBytes>
  __device__ void store_vectors(SharedAddress stage, int first, int end) const {
    const int i = row_of_lane<kVectorBytes>();
    const int count = min(end - first - i, kVectorRows<kVectorBytes>);
    if (count <= 0) return;
    char* to = vector_of_lane<kVectorBytes>(params_.grad_x, first + i);
    const int channel = lane_ / (kRunBytes / kVectorBytes);
    stage += place(channel, i);
#pragma unroll
    for (int c = 0; c < 32; c += kStep<kVectorBytes>) {
      if (channel_ + channel + c >= params_.channels) return;
      char* vector = nth_row(to, stride_of(params_.grad_x), c);
      if (count == kVectorRows<kVectorBytes>) {
        std::uint32_t words[kVectorBytes / 4];
        load_shared_words(stage + c * kPitch, words);
        store_words(vector, words);
        continue;
      }
      for (int row = 0; row < count; ++row) {
        reinterpret_cast<T*>(vector)[row] =
            load_shared_element<T>(stage + c * kPitch + row * kElementBytes);
      }
    }
  }

  /// The elements of a stage that the lane copies. Lanes have adjacent tokens or adjacent channels,
  /// whichever are closer to each other in memory.
  struct Elements {
    char* first;
    std::int64_t step_bytes;   // from one to the next
    int place, step_of_place;  // in the stage
    int count;
  };

  /// Of rows [row, end).
  __device__ Elements elements_of_lane(const BackwardRows& rows, int row, int end) const {
    if (has_lanes_of_tokens(rows)) {
      constexpr int kChannels = 32 / kRows;  // between elements
      const int channel = lane_ / kRows, i = lane_ % kRows;
      const int channels = params_.channels - channel_ - channel;  // from the first one on
      return {row_at(params_, rows, row + i) + (channel_ + channel) * rows.channel_stride_bytes,
              kChannels * rows.channel_stride_bytes, place(channel, i), kChannels * kPitch,
              row + i < end ? min((channels + kChannels - 1) / kChannels, kRows) : 0};
    }
    return {row_at(params_, rows, row) + (channel_ + lane_) * rows.channel_stride_bytes,
            rows.stride_bytes, place(lane_, 0), kElementBytes,
            channel_ + lane_ < params_.channels ? min(end - row, kRows) : 0};
  }
  __device__ static bool has_lanes_of_tokens(const BackwardRows& rows) {
    return llabs(rows.stride_bytes) <= llabs(rows.channel_stride_bytes);
  }

  __device__ void copy_elements(const BackwardRows& rows, SharedAddress to) const {
    const Elements elements = elements_of_lane(rows, next_, limit_);
    to += elements.place;
    if (params_.is_packed || has_lanes_of_tokens(rows)) {
      const char* from = elements.first;
      copy_each(to, elements, [&](int) {
        const char* here = from;
        from += elements.step_bytes;
        return here;
      });
    } else {  // a row may be in another sequence than the one before
      const std::int64_t channel = (channel_ + lane_) * rows.channel_stride_bytes;
      copy_each(to, elements, [&](int i) { return row_at(params_, rows, next_ + i) + channel; });
    }
  }

  /// next(i) returns the address of element i.
  template <typename Next>
  __device__ static void copy_each(SharedAddress to, const Elements& elements, const Next& next) {
    constexpr int kInFlight = 8;
#pragma unroll 1
    for (int first = 0; first < kRows; first += kInFlight) {
      T loaded[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const char* from = next(first + i);
        if (first + i < elements.count) loaded[i] = *reinterpret_cast<const T*>(from);
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (first + i < elements.count) store_shared_element(to, loaded[i]);
        to += elements.step_of_place;
      }
    }
  }

  __device__ void store_elements(SharedAddress stage, int row, int end) const {
    const BackwardRows& rows = params_.grad_x;
    const Elements elements = elements_of_lane(rows, row, end);
    stage += elements.place;
    const bool is_linear = params_.is_packed || has_lanes_of_tokens(rows);
    char* to = elements.first;
#pragma unroll 4
    for (int i = 0; i < elements.count; ++i) {
      if (!is_linear) {
        to = row_at(params_, rows, row + i) + (channel_ + lane_) * rows.channel_stride_bytes;
      }
      *reinterpret_cast<T*>(to) = load_shared_element<T>(stage);
      to += elements.step_bytes;
      stage += elements.step_of_place;
    }
  }

  const BackwardKernelParams& params_;
  SharedAddress previous_x_, x_, next_x_, grad_out_, next_grad_out_;
  int next_, limit_;  // the first row of the next stage, and the end of the rows
  int channel_, lane_;
};

}  // namespace shortconv::cuda
