// Parameters of the kernels for groups, norms and gates. Each kernel takes one, by value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "core/capability.hpp"
#include "core/groups.hpp"
#include "cuda/host/kernels.hpp"
#include "cuda/kernel_params.hpp"

namespace shortconv::cuda {

/// One group of a call: the problem and the pointers are those of its channels alone.
struct GroupKernelParams {
  GeneralParams general;
  GroupLayout group;
};

/// A group whose norm is computed after its convolution, in place.
struct NormGroup {
  void* out = nullptr;
  std::int64_t heads = 0, head_dim = 0;
  std::int64_t head_stride = 0, token_stride = 0, sequence_stride = 0;
  DType dtype = DType::kF32;
  L2Norm norm;
};
/// The norms of a call. The problem says which rows are padding. A warp has one head of `rows`
/// rows.
struct NormKernelParams {
  GeneralParams general;
  NormGroup groups[kMaxGroups];
  std::int64_t heads = 0;  // of all groups
  std::int32_t rows = 1;   // up to 32
};

/// The gates of a call. The problem says which rows are padding.
struct GateKernelParams {
  GeneralParams general;
  GateProblem gates;
  GatePointers at;
};

/// A group in the tile kernels. Blocks of 128 slots hold its channels: those of a head, then unused
/// slots up to the number that a norm needs. One line of the cache of constants.
struct TileGroup {
  void* out = nullptr;
  std::uint16_t first_block = 0, heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t first_channel = 0;  // of the convolution
  FastDivisor head_slots;          // slots of a head, above 1
  HeadColumns columns;
  std::int32_t out_stride_bytes = 0;  // from one row to the next
  std::int32_t out_head_stride = 0;
};
static_assert(sizeof(TileGroup) == 64);

/// One tensor of the gates, [tokens, heads].
struct GateRows {
  void* data = nullptr;
  std::int64_t sequence_stride = 0, token_stride = 0;
};
/// The gates in the tile kernels.
struct TileGateParams {
  std::int32_t heads = 0;
  HeadColumns a_columns, b_columns;
  GateRows a, b, g, beta;
  std::int64_t g_head_stride = 0, beta_head_stride = 0;
  const void* a_log = nullptr;
  const void* dt_bias = nullptr;
  std::int64_t a_log_stride = 0, dt_bias_stride = 0;
  DType dt_bias_dtype = DType::kF32;
  DecayForm decay = DecayForm::kLog;
  float beta_factor = 1;
  bool round_beta = false;
};

/// Most blocks of channels of a call with groups: 65,536 channels.
inline constexpr int kMaxChannelBlocks = 512;

/// Parameters of the tile kernels with groups. After the sequence-start blocks, the grid has the
/// blocks of the gates, whose latency is long, and then units: a block for each block of channels
/// of the convolved groups, and those that copy. The cache of constants is small: what a block of
/// one group reads is in few of its lines.
struct GroupTileParams {
  KernelParams forward;  // its channels are the slots of the convolved groups; without out
  std::uint32_t convolved_blocks = 0;   // of channels
  std::uint32_t channel_blocks = 0;     // and those of the copied groups
  std::uint32_t tile_rounds = 1;        // blocks of channels that a block convolves, a power of 2
  std::uint32_t copy_rounds = 1;        // and that a block copies
  std::uint32_t convolving_blocks = 0;  // of a unit, before those that copy
  std::uint32_t gate_blocks = 0;        // of the grid
  FastDivisor tile_gate_blocks;         // of a tile
  std::uint32_t padding = 0;            // to the next line
  TileGroup groups[kMaxGroups];         // the convolved ones come first
  std::uint8_t group_of_block[kMaxChannelBlocks] = {};
  L2Norm norms[kMaxGroups];  // eps is 0 without a norm
  std::int64_t out_sequence_strides[kMaxGroups] = {};
  TileGateParams gates;
};

static_assert((0x210 + offsetof(GroupTileParams, groups)) % 64 == 0);  // see KernelParams

/// What a kernel with instances for groups takes.
template <Variant kVariant>
using CallParams = std::conditional_t<kVariant == Variant::kGroups, GroupTileParams, KernelParams>;
SHORTCONV_HOST_DEVICE inline const KernelParams& forward_params(const KernelParams& call) {
  return call;
}
SHORTCONV_HOST_DEVICE inline const KernelParams& forward_params(const GroupTileParams& call) {
  return call.forward;
}

/// Widths of the tile kernels with groups.
inline constexpr Values<4> kGroupTileWidths;
/// Smallest eps of norms in them. The square of a 16-bit number is exact in fp32, and so is one
/// rounding of the sum with a fused multiply-add, unless the square is subnormal, which is nothing
/// beside such an eps.
inline constexpr float kMinTileEps = 0x1p-90f;
/// The kernels that take GroupTileParams.
enum class GroupKernel : std::uint8_t {
  kTiles,     // kernels/group_tiles.cuh
  kFewTiles,  // the same for few waves of blocks
  kDecode,    // kernels/decode.cuh: without norms and gates
};
inline constexpr GroupKernel kGroupKernels[] = {GroupKernel::kTiles, GroupKernel::kFewTiles,
                                                GroupKernel::kDecode};
constexpr std::string_view name_of(GroupKernel kernel) {
  switch (kernel) {
    case GroupKernel::kTiles:
      return "tiles";
    case GroupKernel::kFewTiles:
      return "few tiles";
    case GroupKernel::kDecode:
      return "decode";
  }
  return {};
}
/// Null where none is compiled. Weights of the type of x.
KernelFunction group_tiles_kernel(GroupKernel kernel, DType dtype, int width,
                                  Activation activation);

inline constexpr int kGroupThreads = 128;  // not tuned, as the next
inline constexpr int kGroupTokens = 16;    // packed rows of a thread
inline constexpr int kMaxNormRows = 16;    // packed rows of a warp that normalizes a head
/// Warps that fill a large GPU: with fewer, a warp normalizes fewer rows.
inline constexpr std::int64_t kNormWarps = 132 * 64;

KernelFunction convolve_group_kernel();  // takes GroupKernelParams, as the next
KernelFunction copy_group_kernel();
KernelFunction normalize_groups_kernel();  // takes NormKernelParams
KernelFunction store_gates_kernel();       // takes GateKernelParams
KernelFunction l2_norm_kernel();           // takes L2NormCall
KernelFunction delta_gates_kernel();       // takes GatesCall

}  // namespace shortconv::cuda
