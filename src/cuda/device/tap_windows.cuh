// Windows of 8 adjacent rows and any number of taps, dilated or not, in the shared memory of a
// thread: for the general kernel of gradients.
//
// Four rows or taps are loaded at a time, and each once for all 8 rows of a window if it is not
// dilated.
#pragma once

#include "cuda/backward_tuning.hpp"

namespace shortconv::cuda {

/// The 8 rows that a thread processes together.
inline constexpr int kBatchRows = kGeneralBackwardRows;
using BatchValues = float[kBatchRows];

/// Values of a thread in shared memory, in quads of four. The quads of adjacent threads are
/// adjacent.
struct QuadColumn {
  float4* quads;
  int stride;  // from one quad of the thread to the next

  __device__ float& at(int index) const {
    const auto value = static_cast<unsigned>(index);
    return reinterpret_cast<float*>(quads + value / 4 * stride)[value % 4];
  }
  __device__ void load(int quad, float* values) const {
    const float4 four = quads[quad * stride];
    values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
  }
  __device__ void store(int quad, const float* values) const {
    quads[quad * stride] = float4{values[0], values[1], values[2], values[3]};
  }
};

/// The last rows of a thread's channel. Slots are rows modulo the number of rows, a multiple of
/// kBatchRows.
struct RowRing : QuadColumn {
  int rows;

  /// The slot `distance` rows later or, below 0, earlier; less than `rows` in either direction.
  __device__ int move(int slot, int distance) const {
    slot += distance;
    return slot >= rows ? slot - rows : slot < 0 ? slot + rows : slot;
  }
  // Of slots that are multiples of 4:
  __device__ void load_four(int slot, float* four) const {
    load(static_cast<int>(static_cast<unsigned>(slot) / 4), four);
  }
  /// All rows of a batch.
  __device__ void store_batch(int slot, const float (&batch)[kBatchRows]) const {
    const auto quad = static_cast<int>(static_cast<unsigned>(slot) / 4);
    store(quad, batch), store(quad + 1, batch + 4);
  }
};

/// Tap k has index first + k in its column, so that four taps of a quad need rows of whole quads.
struct TapIndices {
  int width, dilation;
  int first = 4 - (dilation == 1 ? (width - 1) % 4 : 0);
};

// A visitor gets quads of taps, visit_quad<kFull>(quad, first, rows), of which those from `first`
// on exist, or all, and single taps, visit_tap(index, rows). Row i of the batch has the input or
// gradient row_of(rows, tap of the quad, i).
using WindowRows = float[kBatchRows + 4];
template <bool kDescending>
__device__ inline float row_of(const WindowRows& rows, int tap, int i) {
  return rows[tap + (kDescending ? kBatchRows - 1 - i : i)];
}

/// Row 0 of the first tap is in `slot`; from one tap to the next a row is `dilation` rows later or,
/// if kDescending, earlier.
template <bool kDescending, typename Visitor>
__device__ inline void visit_distant_windows(const TapIndices& taps, const RowRing& ring, int slot,
                                             Visitor& visitor) {
  WindowRows rows;
#pragma unroll 1
  for (int k = 0; k < taps.width; ++k) {
#pragma unroll
    for (int i = 0; i < kBatchRows; ++i) {
      rows[kDescending ? kBatchRows - 1 - i : i] = ring.at(ring.move(slot, i));
    }
    visitor.visit_tap(taps.first + k, rows);
    slot = ring.move(slot, kDescending ? -taps.dilation : taps.dilation);
  }
}

/// The rows of a tap are those of the tap before and one more, so each is loaded once.
template <bool kDescending, typename Visitor>
__device__ inline void visit_adjacent_windows(const TapIndices& taps, const RowRing& ring, int slot,
                                              Visitor& visitor) {
  WindowRows rows;
  // The first rows of quad 0, of which only taps from taps.first on exist.
  slot = ring.move(slot, kDescending ? 4 + taps.first : -taps.first);
  const auto load = [&](int first) {  // the next four rows
    float four[4];
    ring.load_four(slot, four);
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[first + i] = four[kDescending ? 3 - i : i];
    slot = ring.move(slot, kDescending ? -4 : 4);
  };
  const auto move_rows = [&] {
#pragma unroll
    for (int i = 0; i < kBatchRows; ++i) rows[i] = rows[i + 4];
  };
  load(0), load(4), load(8);
  if (taps.first < 4) visitor.template visit_quad<false>(0, taps.first, rows);
  move_rows();
  const int last = taps.width - 1 + taps.first;  // the first tap of a quad
#pragma unroll 1
  for (int quad = 1; 4 * quad < last; ++quad) {
    load(8);
    visitor.template visit_quad<true>(quad, 0, rows);
    move_rows();
  }
  visitor.visit_tap(last, rows);
}

template <bool kDescending, typename Visitor>
__device__ inline void visit_windows(const TapIndices& taps, const RowRing& ring, int slot,
                                     Visitor& visitor) {
  if (taps.dilation == 1) return visit_adjacent_windows<kDescending>(taps, ring, slot, visitor);
  visit_distant_windows<kDescending>(taps, ring, slot, visitor);
}

/// Adds the products of taps and rows to sums of 8 rows.
template <bool kDescending>
struct TapSums {
  const QuadColumn& taps;
  BatchValues& sums;

  __device__ void add(float tap, int number, const WindowRows& rows) {
#pragma unroll
    for (int i = 0; i < kBatchRows; ++i) {
      sums[i] = __fmaf_rn(tap, row_of<kDescending>(rows, number, i), sums[i]);
    }
  }
  template <bool kFull>
  __device__ void visit_quad(int quad, int first, const WindowRows& rows) {
    float four[4];
    taps.load(quad, four);
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) {
      if (kFull || tap >= first) add(four[tap], tap, rows);
    }
  }
  __device__ void visit_tap(int index, const WindowRows& rows) { add(taps.at(index), 0, rows); }
};

/// Adds the products of the gradients of 8 rows and their inputs to the sums of the taps.
struct GradientSums {
  const QuadColumn& sums;
  const BatchValues& grads;

  __device__ void add(float& sum, int number, const WindowRows& rows) {
#pragma unroll
    for (int i = 0; i < kBatchRows; ++i) {
      sum = __fmaf_rn(grads[i], row_of<false>(rows, number, i), sum);
    }
  }
  template <bool kFull>
  __device__ void visit_quad(int quad, int first, const WindowRows& rows) {
    float four[4];
    sums.load(quad, four);
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) {
      if (kFull || tap >= first) add(four[tap], tap, rows);
    }
    sums.store(quad, four);
  }
  __device__ void visit_tap(int index, const WindowRows& rows) {
    float sum = sums.at(index);
    add(sum, 0, rows);
    sums.at(index) = sum;
  }
};

}  // namespace shortconv::cuda
