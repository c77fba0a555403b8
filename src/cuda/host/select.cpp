// Problem -> kernel and grid.
#include "cuda/host/select.hpp"

#include <algorithm>
#include <bit>

#include "core/check.hpp"
#include "core/dispatch.hpp"
#include "cuda/host/general.hpp"
#include "cuda/host/numbers.hpp"
#include "cuda/tuning.hpp"
#include "shortconv/schedule.hpp"

namespace shortconv::cuda {
namespace {

/// Selection and grid of one problem on one device.
class Selector {
 public:
  Selector(const Problem& problem, const DeviceProperties& device, const TuningPolicy& policy)
      : p_(problem), device_(device), policy_(policy), features_(features_of(problem)) {}

  [[nodiscard]] std::size_t select_row() const {
    if (p_.dilation != 1 || !has_one_type(p_)) return general_row();
    for (std::size_t row = 0; row < kKernelRows; ++row) {
      const KernelRow& candidate = kKernelTable[row];
      if (has_form(candidate) && candidate.supports(features_) &&
          is_compiled(candidate, p_.x.dtype, p_.weight.dtype, p_.width) && has_layout(row)) {
        return row;
      }
    }
    return general_row();
  }

  /// The row for calls that no other kernel supports.
  [[nodiscard]] std::size_t general_row() const {
    if (p_.op == Op::kVerify) return kGeneralVerifyRow;
    const bool flat = p_.schedule == Schedule::kFlat;
    if (flat && has_single_tokens(p_) && p_.snapshot_count == 0) return kGeneralDecodeRow;
    return p_.in_place || fits_whole_sequences(p_, device_) ? kWholeSequencesRow : kGeneralRow;
  }

  [[nodiscard]] Alignment alignment(std::size_t row) const {
    const std::int64_t group = group_channels(row);
    const auto bytes = [&](StateAccess access, std::int64_t columns) {
      const std::int64_t vector = access == StateAccess::kWindowVectors
                                      ? run_vector(columns, group, p_.state.dtype)
                                      : group;
      return static_cast<std::uint32_t>(vector * element_bytes(p_.state.dtype));
    };
    if (group == 1) return {};
    return {.rows = static_cast<std::uint32_t>(group * element_bytes(p_.x.dtype)),
            .state = bytes(state_access(p_, group), window_columns(p_)),
            .intermediate_states = bytes(intermediate_access(p_, group), p_.width - 1)};
  }

  [[nodiscard]] LaunchConfig launch(std::size_t row) const {
    LaunchConfig launch;
    launch.row = row;
    const Kernel kernel = launch.kernel();
    const std::int64_t units = units_of(kernel, launch.params);
    // Schedules made of sequences need one more unit for the rows outside of all sequences.
    const bool outside =
        p_.op == Op::kVerify || p_.schedule != Schedule::kFlat || kernel == Kernel::kWholeSequences;
    launch.threads = threads_of(row);
    const std::int64_t blocks = divide_up(p_.channels, block_channels(row, launch.threads));
    launch.blocks = (units + (outside ? 1 : 0) + snapshot_units(kernel)) * blocks;
    if (launch.blocks > kMaxBlocks) return launch;
    launch.params.tiles = static_cast<std::uint32_t>(units);
    launch.params.channel_blocks = FastDivisor(static_cast<std::uint32_t>(blocks));
    launch.params.state_access = state_access(p_, group_channels(row));
    launch.params.intermediate_access = intermediate_access(p_, group_channels(row));
    if (has_start_blocks(kernel)) divide_tiles(units - p_.sequences, blocks, launch);
    if (kernel == Kernel::kDrafts && features_.includes({Feature::kLongChains})) {
      launch.params.start_blocks_take_all = true;
      launch.blocks = (units + tiles_of(kTileTokens, launch.params)) * blocks;
    }
    // A tile cannot know when other tiles have read a history, so snapshots that replace one are a
    // second launch. They need write_slots: no snapshot goes to the slot of the final state.
    if (kernel == Kernel::kTiles && p_.write_slots.present) {
      launch.replacing_blocks = p_.snapshot_count * divide_up(p_.channels, kGeneralThreads);
    }
    launch.params.pdl = pdl_mode(launch);
    const std::int64_t last = policy_.pdl_last_blocks * device_.multiprocessors;
    launch.params.pdl_launch_from =
        static_cast<std::uint32_t>(std::max<std::int64_t>(launch.blocks - last, 0));
    launch.params.prefetch_state = prefetches_state(launch);
    launch.params.packed_taps = p_.weight.tap_stride == 1 && p_.weight.channel_stride == p_.width &&
                                (!p_.bias.present || p_.bias.channel_stride == 1);
    return launch;
  }

 private:
  /// Whether the kernel is for calls of this form.
  [[nodiscard]] bool has_form(const KernelRow& row) const {
    const bool verify = p_.op == Op::kVerify;
    const bool flat = p_.schedule == Schedule::kFlat && !verify;
    const bool separate = flat && !p_.in_place && p_.shifted_columns == 0;
    switch (row.kernel) {
      case Kernel::kDrafts:
        return verify && !p_.parents.present;
      case Kernel::kTrees:
        return verify && p_.parents.present;
      case Kernel::kBlockList:
        return !flat && !verify;
      case Kernel::kDecode:
        return flat && is_decode() && !is_small_decode(row);
      case Kernel::kSmallDecode:
        return flat && is_decode() && is_small_decode(row);
      case Kernel::kSeqIdxTiles:
        return separate && p_.seq_idx.present;
      case Kernel::kShortSequences:
        return separate && !p_.seq_idx.present && has_short_sequences();
      case Kernel::kSmallTiles:
        return separate && !p_.seq_idx.present && is_small();
      case Kernel::kTiles:
        return separate && !p_.seq_idx.present;
      case Kernel::kChannelsFirst:
        // Without runs of adjacent tokens the general kernels are faster: decode of 256, 59 times.
        return separate && !p_.seq_idx.present && p_.x.token_stride == 1 &&
               p_.out.token_stride == 1 && !has_single_tokens(p_);
      case Kernel::kGeneral:
      case Kernel::kGeneralDecode:
      case Kernel::kGeneralVerify:
      case Kernel::kWholeSequences:
        break;
    }
    return true;
  }

  /// Whether rows and strides are those that the kernel moves in vectors and counts in 31 bits.
  [[nodiscard]] bool has_layout(std::size_t row) const {
    const Kernel kernel = kernel_of(row);
    if (kernel == Kernel::kChannelsFirst) return true;
    // Small tiles require what tiles do, so that the choice between them is by size.
    const std::size_t bytes = static_cast<std::size_t>(element_bytes(p_.x.dtype));
    const std::int64_t group =
        kernel == Kernel::kSmallTiles ? tile_group(bytes) : group_channels(row);
    return is_token_major(p_, group) && is_countable(p_);
  }

  [[nodiscard]] bool is_decode() const {
    return has_single_tokens(p_) && p_.state.present && p_.initial_state == InitialState::kAll &&
           p_.shifted_columns <= 1;
  }
  /// Only the base variant has both sizes, with states and weights of x's type.
  [[nodiscard]] bool is_small_decode(const KernelRow& row) const {
    if (row.variant != Variant::kBase || row.has_f32_state()) {
      return row.kernel == Kernel::kSmallDecode;
    }
    // With fp32 weights 256 x 8192 takes 15.6 us with 16 bytes a thread, 11.6 with 4 channels.
    if (p_.weight.dtype != p_.x.dtype) return true;
    const std::int64_t elements = p_.tokens * p_.channels;
    if (elements <= policy_.small_decode_elements) return true;
    const std::int64_t wave = policy_.decode_wave_blocks * device_.multiprocessors;
    const std::int64_t blocks =
        divide_up(elements, most_decode_threads(false) * 16 / element_bytes(p_.x.dtype));
    return blocks * 100 < divide_up(blocks, wave) * wave * policy_.decode_wave_percent;
  }

  /// On average. Without states, a query_start_loc with as many sequences as tokens is assumed to
  /// be padded to the maximum.
  [[nodiscard]] bool has_short_sequences() const {
    const bool spare = !p_.state.present && p_.sequences >= p_.tokens;
    const std::int64_t most = is_small() ? kTileTokens : policy_.short_sequence_tokens;
    return p_.tokens < most * p_.sequences && !spare;
  }
  /// For small tiles: at most a wave of blocks, or short sequences whose start blocks would have
  /// few warps.
  [[nodiscard]] bool is_small() const {
    const std::int64_t tiles = is_dense(p_)
                                   ? p_.sequences * divide_up(p_.sequence_tokens, kTileTokens)
                                   : divide_up(p_.tokens, kTileTokens);
    const bool few_warps =
        short_sequence_warps() < policy_.short_sequence_warps * device_.multiprocessors;
    return (p_.sequences + tiles) * divide_up(p_.channels, kTileChannels) <=
               policy_.small_tile_waves * wave() ||
           (few_warps && p_.tokens < policy_.short_sequence_tokens * p_.sequences);
  }
  /// Of the sequence-start blocks: a warp for each sequence and block of a tile's channels.
  [[nodiscard]] std::int64_t short_sequence_warps() const {
    return p_.sequences * divide_up(p_.channels, kTileChannels);
  }

  /// Blocks of tiles that the device holds at once.
  [[nodiscard]] std::int64_t wave() const { return policy_.wave_blocks * device_.multiprocessors; }

  /// Adjacent channels that a thread moves together.
  [[nodiscard]] std::int64_t group_channels(std::size_t row) const {
    const Kernel kernel = kernel_of(row);
    switch (kernel) {
      case Kernel::kDecode:
        return 16 / element_bytes(p_.x.dtype);
      case Kernel::kSmallDecode:
        return kSmallDecodeGroup;
      case Kernel::kTiles:
      case Kernel::kShortSequences:
      case Kernel::kSeqIdxTiles:
        return tile_group(static_cast<std::size_t>(element_bytes(p_.x.dtype)));
      case Kernel::kDrafts:
      case Kernel::kTrees:
        return kDraftGroup;
      case Kernel::kSmallTiles:
        return kSmallTileGroup;
      case Kernel::kBlockList:
        return 2;
      case Kernel::kChannelsFirst:
      case Kernel::kGeneral:
      case Kernel::kGeneralDecode:
      case Kernel::kGeneralVerify:
      case Kernel::kWholeSequences:
        break;
    }
    return 1;
  }

  [[nodiscard]] std::int32_t threads_of(std::size_t row) const {
    const Kernel kernel = kernel_of(row);
    switch (kernel) {
      case Kernel::kShortSequences:
        return short_sequence_channels() / static_cast<std::int32_t>(group_channels(row));
      case Kernel::kTiles:
      case Kernel::kSmallTiles:
      case Kernel::kSeqIdxTiles:
        return kTileChannels / static_cast<std::int32_t>(group_channels(row));
      case Kernel::kDecode:
      case Kernel::kSmallDecode:
        return decode_threads(row);
      case Kernel::kDrafts:
      case Kernel::kTrees:
        return kDraftThreads;
      case Kernel::kChannelsFirst:
        return 32 * kChannelsFirstWarps;
      case Kernel::kBlockList:
        return kBlockChannels / 2;
      case Kernel::kWholeSequences:
        return whole_sequences_threads(p_);
      case Kernel::kGeneral:
      case Kernel::kGeneralDecode:
      case Kernel::kGeneralVerify:
        break;
    }
    return kGeneralThreads;
  }

  [[nodiscard]] std::int32_t short_sequence_channels() const {
    const std::int64_t least = p_.tokens < kTileTokens * p_.sequences
                                   ? policy_.small_shortest_sequence_warps
                                   : policy_.small_short_sequence_warps;
    const bool few = short_sequence_warps() < least * device_.multiprocessors;
    return few && p_.tokens > p_.sequences ? kFewShortSequenceChannels : kShortSequenceChannels;
  }

  [[nodiscard]] std::int32_t decode_threads(std::size_t row) const {
    const bool circular = kKernelTable[row].variant == Variant::kCircular;
    const std::int64_t elements = p_.tokens * p_.channels;
    const int wanted = circular || elements <= policy_.decode_elements_64_threads ? 64
                       : elements <= policy_.decode_elements_128_threads          ? 128
                                                                                  : 256;
    const std::int64_t warps = divide_up(divide_up(p_.channels, group_channels(row)), 32);
    return static_cast<std::int32_t>(std::min<std::int64_t>(32 * warps, wanted));
  }

  [[nodiscard]] std::int64_t block_channels(std::size_t row, std::int32_t threads) const {
    const Kernel kernel = kernel_of(row);
    if (kernel == Kernel::kChannelsFirst) return kChannelsFirstWarps * kWarpChannels;
    if (kernel == Kernel::kWholeSequences) return whole_sequences_channels(p_);
    if (kernel == Kernel::kGeneralDecode) return general_decode_block_channels(p_);
    return threads * group_channels(row);
  }

  static bool has_start_blocks(Kernel kernel) {
    return kernel == Kernel::kTiles || kernel == Kernel::kShortSequences ||
           kernel == Kernel::kSmallTiles;
  }

  [[nodiscard]] std::int64_t tiles_of(std::int64_t tile_tokens, LaunchParams& params) const {
    if (!is_dense(p_)) return divide_up(p_.tokens, tile_tokens);
    const std::int64_t each = divide_up(p_.sequence_tokens, tile_tokens);
    if (each <= kMaxBlocks) params.sequence_tiles = FastDivisor(static_cast<std::uint32_t>(each));
    return p_.sequences * each;
  }

  [[nodiscard]] std::int64_t scheduled_units(LaunchParams& params) const {
    if (p_.schedule == Schedule::kBlockList) return p_.block_count;
    const std::int64_t longest = is_dense(p_) ? p_.sequence_tokens : p_.max_seqlen;
    const std::int64_t each = std::max<std::int64_t>(divide_up(longest, kBlockTokens), 1);
    if (each <= kMaxBlocks) params.sequence_tiles = FastDivisor(static_cast<std::uint32_t>(each));
    return p_.sequences * each;
  }

  /// Number of units of work along the tokens; sets the divisors that split a unit's number.
  [[nodiscard]] std::int64_t units_of(Kernel kernel, LaunchParams& params) const {
    switch (kernel) {
      case Kernel::kTiles:  // sequence starts, then tiles
      case Kernel::kShortSequences:
      case Kernel::kSmallTiles:
        return p_.sequences + tiles_of(kTileTokens, params);
      case Kernel::kSeqIdxTiles:
        return tiles_of(kTileTokens, params);
      case Kernel::kDecode:
      case Kernel::kSmallDecode:
      case Kernel::kDrafts:
      case Kernel::kTrees:
        return p_.sequences;
      case Kernel::kChannelsFirst:
        return tiles_of(32 * 16 / element_bytes(p_.x.dtype), params);
      case Kernel::kBlockList:
        return scheduled_units(params);
      case Kernel::kGeneralVerify:
        params.unit_tokens = static_cast<std::uint32_t>(staged_tokens(p_));
        return p_.sequences;
      case Kernel::kGeneralDecode:
        params.unit_tokens = general_decode_sequences(p_, device_);
        return divide_up(p_.sequences, params.unit_tokens);
      case Kernel::kWholeSequences:
        return p_.sequences;
      case Kernel::kGeneral:
        break;
    }
    if (p_.schedule != Schedule::kFlat) return scheduled_units(params);
    params.unit_tokens = general_rows(p_, device_, policy_);
    return divide_up(p_.tokens, params.unit_tokens);
  }

  /// Snapshots whose inputs are in x and not overwritten have their own units. The thread that
  /// reads the sequence's state writes the others.
  [[nodiscard]] std::int64_t snapshot_units(Kernel kernel) const {
    const bool decode = kernel == Kernel::kDecode || kernel == Kernel::kSmallDecode ||
                        kernel == Kernel::kGeneralDecode;
    return decode || p_.in_place ? 0 : p_.snapshot_count;
  }

  /// Sequence-start blocks start all sequences in small calls, so that a tile does less and the
  /// call ends sooner, and where sequences are short. Otherwise tiles do, which is less work, and
  /// most start blocks find nothing to do: each processes several groups of channels, and together
  /// they are at most a wave.
  void divide_tiles(std::int64_t tiles, std::int64_t groups, LaunchConfig& launch) const {
    LaunchParams& params = launch.params;
    const Kernel kernel = launch.kernel();
    const std::int64_t starts = p_.sequences * groups;
    params.start_blocks_take_all =
        kernel != Kernel::kTiles ||
        starts + tiles * groups <= policy_.start_blocks_take_all_waves * wave();
    const auto waves = static_cast<std::uint64_t>(divide_up(starts, wave()));
    const auto all = static_cast<std::uint64_t>(groups);
    const auto least = static_cast<std::uint64_t>(policy_.min_start_rounds);
    params.start_rounds = static_cast<std::uint32_t>(
        params.start_blocks_take_all
            ? 1
            : std::min(std::max(std::bit_ceil(waves), least), std::bit_ceil(all)));
    const std::int64_t start_blocks = divide_up(groups, params.start_rounds);
    const bool needed =
        params.start_blocks_take_all || !is_dense(p_) || p_.sequence_tokens < kTileTokens;
    params.start_channel_blocks = FastDivisor(static_cast<std::uint32_t>(start_blocks));
    params.start_blocks = static_cast<std::uint32_t>(needed ? p_.sequences * start_blocks : 0);
    const std::int64_t tile_blocks =
        kernel == Kernel::kShortSequences ? divide_up(p_.channels, kShortTileChannels) : groups;
    params.channel_blocks = FastDivisor(static_cast<std::uint32_t>(tile_blocks));
    params.tiles = static_cast<std::uint32_t>(tiles);
    const std::int64_t snapshot_blocks = divide_up(groups, kSnapshotRounds);
    params.snapshot_channel_blocks = FastDivisor(static_cast<std::uint32_t>(snapshot_blocks));
    const std::int64_t snapshots = snapshot_units(kernel) * snapshot_blocks;
    params.snapshot_blocks = static_cast<std::uint32_t>(snapshots);
    launch.blocks = snapshots + params.start_blocks + tiles * tile_blocks;
  }

  [[nodiscard]] PdlMode pdl_mode(const LaunchConfig& launch) const {
    const Kernel kernel = launch.kernel();
    const bool waits = !takes_general_params(kernel) || kernel == Kernel::kGeneralDecode ||
                       kernel == Kernel::kGeneralVerify;
    if (!p_.programmatic_launch || !waits) return PdlMode::kOff;
    const bool drafts =
        kernel == Kernel::kDrafts || kernel == Kernel::kTrees || kernel == Kernel::kGeneralVerify;
    return drafts && launch.blocks < policy_.pdl_drafts_from ? PdlMode::kWait
                                                             : PdlMode::kWaitAndLaunch;
  }

  /// With PDL, decodes of 8, 16, 32 and 64 x 8192 take 1.90, 2.13, 2.49 and 3.33 us without the
  /// prefetch and 1.78, 1.89, 2.27 and 3.15 with it; of 128 and 256 5.25 and 9.83, 5.37 and 10.01
  /// with it; of 64 and 256 x 2048 with gates 2.43 and 3.92, 2.03 and 3.72. With a shifted column
  /// and columns innermost, 64 take 4.28 without and 4.60 with it. (H200.) Above
  /// small_decode_elements only plain calls have it: those of decode_wave_percent were measured
  /// with it. A prefetch has whole units of 16 bytes, and the channels of the last block must be at
  /// least one.
  [[nodiscard]] bool prefetches_state(const LaunchConfig& launch) const {
    constexpr std::int64_t kUnit = 16;
    if (launch.kernel() != Kernel::kSmallDecode) return false;
    const bool is_plain = kKernelTable[launch.row].variant == Variant::kBase &&
                          p_.weight.dtype == p_.x.dtype && p_.state.dtype == p_.x.dtype;
    return (is_plain || p_.tokens * p_.channels <= policy_.small_decode_elements) &&
           p_.shifted_columns == 0 && launch.params.state_access != StateAccess::kElements &&
           !p_.read_offsets.present && p_.channels * element_bytes(p_.state.dtype) % kUnit == 0;
  }

  const Problem& p_;
  const DeviceProperties& device_;
  const TuningPolicy& policy_;
  const FeatureSet features_;
};

}  // namespace

FeatureSet features_of(const Problem& p) {
  FeatureSet features;
  if (p.cache_seqlens.present) features.add(Feature::kCircularBuffers);
  if (p.shifted_columns > 0) features.add(Feature::kShiftFullState);
  if (p.input_gate.present) features.add(Feature::kGates);
  if (has_f32_states(p)) features.add(Feature::kF32State);
  if (p.snapshot_count > 0) features.add(Feature::kSnapshots);
  if (p.intermediate_slots.present) features.add(Feature::kIntermediateSlots);
  switch (p.epilogue) {
    case Epilogue::kNone:
      break;
    case Epilogue::kResidual:
      features.add(Feature::kResidual);
      break;
    case Epilogue::kOutputGate:
      features.add(Feature::kGates);
      break;
  }
  // More than 8 tokens a sequence on average: there are prompts, which are slow for one thread
  // each. Tiles take the tokens after the first strip, except with intermediate slots, which may be
  // in the pool, where the history has to be read first.
  if (p.op == Op::kVerify && !p.parents.present && !p.intermediate_slots.present &&
      p.tokens > kTileTokens * p.sequences && is_listed(kModelWidths, p.width)) {
    features.add(Feature::kLongChains);
  }
  return features;
}

Status select(const Problem& p, const DeviceProperties& device, const TuningPolicy& policy,
              KernelConfig& config) {
  config = {};
  if (p.tokens == 0 || p.channels == 0) return {};
  const Selector selector(p, device, policy);
  const std::size_t row = selector.select_row();
  config.alignment = selector.alignment(row);
  config.aligned = selector.launch(row);
  config.fallback =
      config.alignment.rows == 1 ? config.aligned : selector.launch(selector.general_row());
  for (const LaunchConfig* launch : {&config.aligned, &config.fallback}) {
    const std::int64_t blocks = std::max(launch->blocks, launch->replacing_blocks);
    if (blocks > kMaxBlocks) {
      return {Code::kUnsupported,
              concat("x: needs ", blocks, " blocks of kernel '", name_of(launch->kernel()),
                     "'; a grid has at most ", kMaxBlocks)};
    }
  }
  const std::int64_t longest = is_dense(p) ? p.sequence_tokens : p.tokens;
  if (p.parents.present && longest > kMaxTreeTokens) {
    return {Code::kUnsupported,
            concat("x: has trees of up to ", longest, " tokens; expected at most ", kMaxTreeTokens,
                   " on the backend 'cuda'")};
  }
  return {};
}

bool supports_group_tiles(const Problem& p) {
  const std::int64_t bytes = element_bytes(p.x.dtype);
  return bytes == 2 && p.weight.dtype == p.x.dtype && p.schedule == Schedule::kFlat &&
         p.op != Op::kVerify && p.dilation == 1 && !p.seq_idx.present && has_one_type(p) &&
         features_of(p) == FeatureSet{} &&
         is_token_major(p, tile_group(static_cast<std::size_t>(bytes))) && is_countable(p);
}

LaunchConfig select_tiles(const Problem& problem, std::int64_t slots,
                          const DeviceProperties& device, const TuningPolicy& policy,
                          Alignment& alignment) {
  constexpr std::size_t kRow = [] {
    std::size_t row = 0;
    while (kKernelTable[row].kernel != Kernel::kTiles) ++row;
    return row;
  }();
  Problem call = problem;
  call.channels = slots;
  const Selector selector(call, device, policy);
  alignment = selector.alignment(kRow);
  return selector.launch(kRow);
}

KernelFunction launch_for(const KernelConfig& config, const TensorPointers& at,
                          LaunchConfig& launch) {
  const bool fast = has_aligned_rows(config.alignment, at);
  launch = fast ? config.aligned : config.fallback;
  restrict_to_alignment(config.alignment, at, launch.params);
  return fast ? config.aligned_function : config.fallback_function;
}

std::string name_of(const LaunchConfig& launch) {
  const Kernel kernel = launch.kernel();
  return is_general(kernel) ? std::string(name_of(kernel)) : name_of(kKernelTable[launch.row]);
}

std::string to_string(const LaunchConfig& launch) {
  return concat(name_of(launch), ", ", launch.blocks, " blocks of ", std::int64_t{launch.threads},
                " threads");
}

}  // namespace shortconv::cuda
