// Which kernel the CUDA backend chooses, before any GPU is asked.
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "core/capability.hpp"
#include "core/dispatch.hpp"
#include "cuda/tuning.hpp"
#include "cuda_problems.hpp"

namespace shortconv::cuda {
namespace {

bool of_models(int width) { return is_listed(kModelWidths, width); }

TEST(CudaSelect, EveryWidthAndTypeOfTheListsHasAFastKernel) {
  for (const int width : capabilities().widths) {
    for (const auto& [dtype, name] : capabilities().dtypes) {
      for (const DType weight : {dtype, DType::kF32}) {
        if (weight != dtype && !of_models(width)) continue;  // the next test
        Problem p = packed_batch(1000, 8192, 7);
        p.x.dtype = p.out.dtype = p.state.dtype = dtype;
        p.weight.dtype = weight;
        p.width = width;
        EXPECT_EQ(kernel_of(p), Kernel::kTiles) << name << ", width " << width;
        Problem d = decode_batch(8192, 7);
        d.x.dtype = d.out.dtype = d.state.dtype = dtype;
        d.weight.dtype = weight;
        d.width = width;
        EXPECT_EQ(kernel_of(d), Kernel::kSmallDecode) << name << ", width " << width;
        d.tokens = d.sequences = d.slots = 256;
        EXPECT_EQ(kernel_of(d), weight == dtype ? Kernel::kDecode : Kernel::kSmallDecode)
            << name << ", width " << width;
      }
    }
  }
}

TEST(CudaSelect, WidthsThatModelsHaveHaveKernelsForMoreThanPlainCalls) {
  const std::vector<std::function<void(Problem&)>> changes = {
      [](Problem& p) { p.weight.dtype = DType::kF32; },
      [](Problem& p) { p.cache_seqlens.present = true; },
      [](Problem& p) { p.snapshot_count = 1; },
      [](Problem& p) { p.epilogue = Epilogue::kResidual; },
      [](Problem& p) {
        p.op = Op::kVerify, p.intermediate_states.present = p.intermediate_slots.present = true;
      },
      [](Problem& p) { p.op = Op::kVerify, p.parents.present = true; },
      [](Problem& p) { p.schedule = Schedule::kBlockList, p.block_count = 130; },
      [](Problem& p) {
        p.x.token_stride = p.out.token_stride = 1, p.x.channel_stride = p.out.channel_stride = 1000;
      },
      [](Problem& p) {
        p.query_start_loc.present = p.writes_state = false;
        p.tokens = 7000, p.sequence_tokens = 1000;
        p.seq_idx.present = true;
      },
      [](Problem& p) {
        p = decode_batch(512, 7);
        p.state_columns = 9, p.base_column = p.shifted_columns = 1;
      },
  };
  for (const int width : kWidths.all) {
    for (std::size_t change = 0; change < changes.size(); ++change) {
      Problem p = packed_batch(1000, 512, 7);
      changes[change](p);
      p.width = width;
      EXPECT_EQ(!is_general(kernel_of(p)), of_models(width))
          << "width " << width << ", change " << change;
    }
    Problem p = packed_batch(20, 512, 7);
    p.width = width;
    EXPECT_EQ(kernel_of(p), of_models(width) ? Kernel::kShortSequences : Kernel::kTiles);
    p.tokens = 200;
    EXPECT_EQ(kernel_of(p), of_models(width) ? Kernel::kSmallTiles : Kernel::kTiles);
    p.op = Op::kVerify;  // prompts among the drafts
    EXPECT_EQ(kernel_of(p), Kernel::kDrafts);
    EXPECT_EQ(variant_of(p), of_models(width) ? Variant::kExtended : Variant::kBase);
  }
}

TEST(CudaSelect, TheRestGoesToTheGeneralKernel) {
  Problem wide = packed_batch(1000, 512, 7);
  wide.width = 9;
  EXPECT_TRUE(is_general(kernel_of(wide)));
  Problem mixed = packed_batch(1000, 512, 7);
  mixed.state.dtype = DType::kF16;
  EXPECT_TRUE(is_general(kernel_of(mixed)));
  mixed.x.dtype = mixed.out.dtype = DType::kF32;
  EXPECT_TRUE(is_general(kernel_of(mixed)));
  Problem narrow = packed_batch(1000, 512, 7);
  narrow.out.dtype = DType::kF32;
  EXPECT_TRUE(is_general(kernel_of(narrow)));
  Problem odd = packed_batch(1000, 511, 7);
  EXPECT_TRUE(is_general(kernel_of(odd)));
  Problem in_place = packed_batch(1000, 512, 7);
  in_place.in_place = true;
  EXPECT_EQ(kernel_of(in_place), Kernel::kWholeSequences);
  Problem far = packed_batch(1000, 512, 7);
  far.x.token_stride = std::int64_t{1} << 32;
  EXPECT_TRUE(is_general(kernel_of(far)));
}

TEST(CudaSelect, WideWindowsOfLongSequencesShareRows) {
  const auto wide = [](std::int64_t tokens, std::int64_t channels, std::int64_t sequences) {
    Problem p = packed_batch(tokens, channels, sequences);
    p.width = 12;
    return p;
  };
  EXPECT_EQ(kernel_of(wide(8192, 8192, 1)), Kernel::kWholeSequences);
  EXPECT_EQ(kernel_of(wide(8192, 4096, 8)), Kernel::kWholeSequences);
  EXPECT_EQ(kernel_of(wide(8192, 2048, 1)), Kernel::kGeneral) << "too few blocks";
  EXPECT_EQ(kernel_of(wide(8192, 2048, 8)), Kernel::kGeneral) << "one may have most of the tokens";
  EXPECT_EQ(kernel_of(wide(8192, 8192, 9)), Kernel::kGeneral) << "short sequences";
  Problem p = wide(8192, 8192, 1);
  p.width = 4, p.dilation = 2;
  EXPECT_EQ(kernel_of(p), Kernel::kWholeSequences);
  p.snapshot_count = 1;
  EXPECT_EQ(kernel_of(p), Kernel::kGeneral);
  p.snapshot_count = 0, p.seq_idx.present = true;
  EXPECT_EQ(kernel_of(p), Kernel::kGeneral);
}

TEST(CudaSelect, CircularBuffersSnapshotsAndIntermediateSlotsHaveFastKernels) {
  Problem columns = packed_batch(1000, 512, 7);
  columns.x.token_stride = columns.out.token_stride = 1;
  columns.x.channel_stride = columns.out.channel_stride = 1000;
  for (const bool circular : {true, false}) {
    const auto with = [&](Problem p) {
      p.cache_seqlens.present = circular;
      p.snapshot_count = circular ? 0 : 1;
      return p;
    };
    EXPECT_EQ(kernel_of(with(packed_batch(1000, 512, 7))), Kernel::kTiles);
    EXPECT_EQ(kernel_of(with(packed_batch(20, 512, 7))), Kernel::kTiles) << "short sequences";
    EXPECT_EQ(variant_of(with(packed_batch(20, 512, 7))), Variant::kExtended);
    EXPECT_EQ(kernel_of(with(decode_batch(512, 7))), Kernel::kDecode) << "a small one";
    EXPECT_EQ(variant_of(with(decode_batch(512, 7))),
              circular ? Variant::kCircular : Variant::kExtended);
    EXPECT_TRUE(is_general(kernel_of(with(columns))));
  }
  Problem drafts = packed_batch(28, 512, 7);
  drafts.op = Op::kVerify;
  EXPECT_EQ(variant_of(drafts), Variant::kBase);
  drafts.intermediate_states.present = drafts.intermediate_slots.present = true;
  EXPECT_EQ(variant_of(drafts), Variant::kExtended);
  EXPECT_EQ(kernel_of(drafts), Kernel::kDrafts);
  drafts.parents.present = true;
  EXPECT_EQ(kernel_of(drafts), Kernel::kTrees);
}

TEST(CudaSelect, SequencesBySeqIdxHaveSeparateTiles) {
  for (const std::int64_t tokens : {1000, 1}) {
    Problem p = decode_batch(512, 7);
    p.op = Op::kForward;
    p.seq_idx.present = true;
    p.writes_state = false;
    p.sequence_tokens = tokens;
    p.tokens = 7 * tokens;
    const LaunchConfig& launch = chosen(p).aligned;
    EXPECT_EQ(launch.kernel(), Kernel::kSeqIdxTiles);
    EXPECT_EQ(launch.blocks, 7 * ((tokens + kTileTokens - 1) / kTileTokens) * 512 / kTileChannels);
    p.cache_seqlens.present = true;
    EXPECT_TRUE(is_general(kernel_of(p)));
    p.cache_seqlens.present = false;
    p.seq_idx.token_stride = std::int64_t{1} << 31;
    EXPECT_TRUE(is_general(kernel_of(p)));
    p.seq_idx.token_stride = 1;
    p.x.token_stride = p.out.token_stride = 1;
    p.x.channel_stride = p.out.channel_stride = 1000;
    EXPECT_TRUE(is_general(kernel_of(p)));
  }
}

TEST(CudaSelect, HistoriesAreReplacedAfterTilesWhereFinalStatesGoElsewhere) {
  Problem p = packed_batch(8192, 1000, 8);
  p.snapshot_count = 5;
  EXPECT_EQ(chosen(p).aligned.replacing_blocks, 0);
  p.write_slots.present = true;
  EXPECT_EQ(chosen(p).aligned.replacing_blocks, 5 * 8);
  EXPECT_EQ(chosen(p).fallback.replacing_blocks, 0);  // general: does it itself
  p.snapshot_count = 0;
  EXPECT_EQ(chosen(p).aligned.replacing_blocks, 0);
}

TEST(CudaSelect, ResidualsAreFastGatesAndDilationGeneral) {
  for (const auto& [epilogue, name] : capabilities().epilogues) {
    for (Problem p : {packed_batch(1000, 512, 7), decode_batch(512, 7)}) {
      p.epilogue = epilogue;
      p.output_gate.present = epilogue == Epilogue::kOutputGate;
      EXPECT_EQ(is_general(kernel_of(p)), epilogue == Epilogue::kOutputGate) << name;
      EXPECT_EQ(variant_of(p) == Variant::kExtended, epilogue == Epilogue::kResidual) << name;
      p.input_gate.present = true;
      EXPECT_TRUE(is_general(kernel_of(p))) << name;
    }
  }
  Problem drafts = packed_batch(1000, 512, 7);
  drafts.op = Op::kVerify;
  drafts.input_gate.present = true;
  EXPECT_TRUE(is_general(kernel_of(drafts)));
  Problem dilated = packed_batch(1000, 512, 7);
  dilated.dilation = 2;
  EXPECT_TRUE(is_general(kernel_of(dilated)));
}

TEST(CudaSelect, OneShiftedColumnIsFastInADecodeElseGeneral) {
  for (const int width : kModelWidths.all) {
    for (const auto& [dtype, name] : capabilities().dtypes) {
      const auto text = [&] { return ::testing::Message() << name << ", width " << width; };
      Problem decode = decode_batch(512, 7);
      decode.x.dtype = decode.out.dtype = decode.weight.dtype = decode.state.dtype = dtype;
      decode.width = width;
      decode.state_columns = width;
      decode.state.slot_stride = width * 512;
      decode.base_column = decode.shifted_columns = 1;
      EXPECT_EQ(kernel_of(decode), Kernel::kSmallDecode) << text();
      EXPECT_EQ(variant_of(decode), Variant::kShiftFullState);
      Problem residual = decode;
      residual.epilogue = Epilogue::kResidual;
      EXPECT_EQ(kernel_of(residual), Kernel::kDecode) << text();
      EXPECT_EQ(variant_of(residual), Variant::kExtended);
      Problem large = decode_batch(8192, 512);
      large.state_columns = large.width;
      large.base_column = large.shifted_columns = 1;
      EXPECT_EQ(kernel_of(large), Kernel::kSmallDecode) << "whole sectors in each access";
      EXPECT_EQ(chosen(decode).aligned.params.state_access, StateAccess::kChannelVectors);

      Problem windows = decode;  // [slots, channels, width]
      windows.state.column_stride = 1;
      windows.state.channel_stride = width;
      EXPECT_EQ(kernel_of(windows), Kernel::kSmallDecode) << text();
      EXPECT_EQ(chosen(windows).aligned.params.state_access, StateAccess::kWindowVectors) << text();
      windows.state_columns = windows.state.channel_stride = width + 1;
      windows.state.slot_stride = (width + 1) * 512;
      EXPECT_EQ(chosen(windows).aligned.params.state_access, StateAccess::kElements)
          << text() << ", a column behind the history";
      Problem stays = decode;
      stays.state.column_stride = 1;
      stays.state.channel_stride = width;
      stays.shifted_columns = 0;
      EXPECT_EQ(chosen(stays).aligned.params.state_access, StateAccess::kElements) << text();

      for (int change = 0; change < 4; ++change) {
        Problem other = decode;
        if (change == 0) other.base_column = other.shifted_columns = 2;
        if (change == 1) other.initial_state = InitialState::kByFlag;
        if (change == 2) other.sequence_tokens = 2, other.tokens *= 2;
        if (change == 3) other.query_start_loc.present = true, other.op = Op::kForward;
        EXPECT_TRUE(is_general(kernel_of(other))) << text() << ", change " << change;
      }
      decode.in_place = true;
      EXPECT_EQ(kernel_of(decode), Kernel::kSmallDecode) << text();
    }
  }
  Problem columns = packed_batch(1000, 512, 7);
  columns.x.token_stride = columns.out.token_stride = 1;
  columns.x.channel_stride = columns.out.channel_stride = 1000;
  columns.shifted_columns = 1;
  EXPECT_TRUE(is_general(kernel_of(columns)));
}

TEST(CudaSelect, GatesAreFastWhereNothingElseIsRare) {
  Problem drafts = packed_batch(28, 512, 7);
  drafts.op = Op::kVerify;
  Problem trees = drafts;
  trees.parents.present = true;
  const std::pair<Problem, Kernel> calls[] = {
      {trees, Kernel::kTrees},
      {packed_batch(100000, 512, 7), Kernel::kTiles},
      {packed_batch(1000, 512, 7), Kernel::kTiles},
      {packed_batch(28, 512, 7), Kernel::kTiles},
      {decode_batch(512, 7), Kernel::kSmallDecode},
      {decode_batch(8192, 512), Kernel::kSmallDecode},
      {drafts, Kernel::kDrafts},
  };
  for (const int width : kGatedWidths.all) {
    for (const auto& [plain, kernel] : calls) {
      Problem p = gated(plain);
      p.width = width;
      const auto text = [&] {
        return ::testing::Message() << name_of(kernel) << ", width " << width;
      };
      EXPECT_EQ(kernel_of(p), kernel) << text();
      EXPECT_EQ(variant_of(p), Variant::kGated);
      for (const bool input : {false, true}) {
        Problem one = p;
        if (input) one.epilogue = Epilogue::kNone;
        if (!input) one.input_gate.present = false;
        EXPECT_EQ(kernel_of(one), kernel) << text();
        (input ? one.input_gate.channel_stride : one.output_gate.channel_stride) = 2;
        EXPECT_TRUE(is_general(kernel_of(one))) << text() << ", channels apart";
        (input ? one.input_gate.channel_stride : one.output_gate.channel_stride) = 1;
        (input ? one.input_gate.token_stride : one.output_gate.token_stride) += 1;
        const Kernel general = plain.op == Op::kVerify ? Kernel::kGeneralVerify : Kernel::kGeneral;
        EXPECT_EQ(kernel_of(one), plain.tokens == plain.sequences ? kernel : general)
            << text() << ", rows not aligned";
      }
      for (int change = 0; change < 5; ++change) {
        Problem other = p;
        if (change == 0) other.weight.dtype = DType::kF32;
        if (change == 1) other.cache_seqlens.present = true;
        if (change == 2) other.snapshot_count = 1;
        if (change == 3) other.state_columns = width, other.base_column = other.shifted_columns = 1;
        if (change == 4) other.width = 5;
        EXPECT_TRUE(is_general(kernel_of(other))) << text() << ", change " << change;
      }
    }
  }
  Problem by_seq_idx = gated(packed_batch(1000, 512, 1));
  by_seq_idx.seq_idx.present = true;
  EXPECT_TRUE(is_general(kernel_of(by_seq_idx)));
}

TEST(CudaSelect, StatesOfF32AreFastBesideRowsOf16Bits) {
  const std::pair<Problem, Kernel> calls[] = {
      {packed_batch(100000, 512, 7), Kernel::kTiles},  {packed_batch(1000, 512, 7), Kernel::kTiles},
      {packed_batch(28, 512, 7), Kernel::kTiles},      {decode_batch(512, 7), Kernel::kSmallDecode},
      {decode_batch(8192, 512), Kernel::kSmallDecode},
  };
  const std::vector<std::function<void(Problem&)>> extended = {
      [](Problem& p) { p.cache_seqlens.present = true; },
      [](Problem& p) { p.snapshot_count = 1; },
      [](Problem& p) { p.epilogue = Epilogue::kResidual; },
      [](Problem& p) { p.op = Op::kVerify; },
      [](Problem& p) { p.op = Op::kVerify, p.parents.present = true; },
  };
  const std::vector<std::function<void(Problem&)>> changes = {
      [](Problem& p) { p = gated(p); },
      [](Problem& p) { p.schedule = Schedule::kSequenceGrid; },
      [](Problem& p) { p.x.channel_stride = p.out.channel_stride = 2; },
      [](Problem& p) { p.width = 2, p.state_columns = 1; },
      [](Problem& p) { p.width = 5, p.state_columns = 4; },
  };
  for (const int width : kF32StateWidths.all) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      for (const auto& [plain, kernel] : calls) {
        Problem p = plain;
        p.x.dtype = p.out.dtype = p.weight.dtype = dtype;
        p.state.dtype = DType::kF32;
        p.width = width;
        p.state_columns = width - 1;
        EXPECT_EQ(kernel_of(p), kernel) << name_of(kernel) << ", width " << width;
        EXPECT_EQ(variant_of(p), Variant::kBase);
        EXPECT_TRUE(row_of(p).has_f32_state());
        EXPECT_EQ(chosen(p).aligned.params.state_access, StateAccess::kChannelVectors);
        EXPECT_EQ(chosen(p).alignment.rows, 8u);
        EXPECT_EQ(chosen(p).alignment.state, 16u);
        Problem f32_weights = p;
        f32_weights.weight.dtype = DType::kF32;
        EXPECT_EQ(kernel_of(f32_weights), kernel);
        for (std::size_t change = 0; change < extended.size(); ++change) {
          Problem other = p;
          extended[change](other);
          EXPECT_EQ(variant_of(other), Variant::kExtended) << name_of(kernel) << ", " << change;
          EXPECT_TRUE(row_of(other).has_f32_state());
        }
        for (std::size_t change = 0; change < changes.size(); ++change) {
          Problem other = p;
          changes[change](other);
          EXPECT_TRUE(is_general(kernel_of(other))) << name_of(kernel) << ", change " << change;
        }
      }
    }
  }
  Problem windows = decode_batch(8192, 8);
  windows.state.dtype = DType::kF32;
  windows.state.channel_stride = windows.state_columns;
  windows.state.column_stride = 1;
  EXPECT_EQ(chosen(windows).aligned.params.state_access, StateAccess::kWindowVectors);
  EXPECT_TRUE(chosen(windows).aligned.params.prefetch_state);
  EXPECT_EQ(chosen(windows).alignment.state, 16u);
}

TEST(CudaSelect, LayoutsAndSchedulesFindTheirKernels) {
  Problem columns = packed_batch(1000, 511, 7);
  columns.x.token_stride = columns.out.token_stride = 1;
  columns.x.channel_stride = columns.out.channel_stride = 1000;
  EXPECT_EQ(kernel_of(columns), Kernel::kChannelsFirst);
  Problem single_column = decode_batch(512, 7);
  single_column.x.token_stride = single_column.out.token_stride = 1;
  single_column.x.channel_stride = single_column.out.channel_stride = 7;
  single_column.x.sequence_stride = single_column.out.sequence_stride = 1;
  EXPECT_EQ(kernel_of(single_column), Kernel::kGeneralDecode) << "no tokens are adjacent";
  for (const Schedule schedule : {Schedule::kBlockList, Schedule::kSequenceGrid}) {
    Problem chunks = packed_batch(1000, 512, 7);
    chunks.schedule = schedule;
    chunks.max_seqlen = 400;
    chunks.block_count = 130;
    EXPECT_EQ(kernel_of(chunks), Kernel::kBlockList);
  }
  Problem decode = decode_batch(512, 7);
  decode.in_place = true;
  EXPECT_EQ(kernel_of(decode), Kernel::kSmallDecode) << "decode works in place";
}

TEST(CudaSelect, CallsOverlapWithTheirNeighboursWhereThatIsAllowed) {
  const auto overlap = [](Problem p, bool allowed) {
    p.programmatic_launch = allowed;
    return chosen(p).aligned.params.pdl;
  };
  Problem chains = packed_batch(256 * 4, 8192, 256);
  chains.op = Op::kVerify;
  Problem trees = chains;
  trees.parents.present = true;
  for (const Problem& p :
       {decode_batch(8192, 1), decode_batch(8192, 512), packed_batch(64, 8192, 16),
        packed_batch(8192, 8192, 1), chains, trees}) {
    EXPECT_EQ(overlap(p, true), PdlMode::kWaitAndLaunch) << to_string(p);
    EXPECT_EQ(overlap(p, false), PdlMode::kOff) << to_string(p);
  }
  trees.sequences = chains.sequences = 32;
  trees.tokens = chains.tokens = 32 * 4;
  EXPECT_EQ(overlap(trees, true), PdlMode::kWait);
  EXPECT_EQ(overlap(chains, true), PdlMode::kWait);
  Problem general = decode_batch(8192, 1);
  general.dilation = 2;
  EXPECT_EQ(overlap(general, true), PdlMode::kWaitAndLaunch);
  Problem wide = packed_batch(8192, 8192, 1);
  wide.width = 9;  // its kernel does not wait for the one before
  EXPECT_EQ(overlap(wide, true), PdlMode::kOff);
}

TEST(CudaSelect, StatesAreVectorsWhereTheirLayoutAllowsIt) {
  const auto form = [](const Problem& p) { return chosen(p).aligned.params.state_access; };
  Problem p = packed_batch(1000, 512, 7);
  EXPECT_EQ(form(p), StateAccess::kChannelVectors);
  p.state.slot_stride += 1;
  EXPECT_EQ(form(p), StateAccess::kElements) << "slots are not aligned";

  Problem windows = packed_batch(100000, 512, 7);
  windows.state.column_stride = 1;
  windows.state.channel_stride = 3;
  EXPECT_EQ(form(windows), StateAccess::kWindowVectors);
  Problem of_width_3 = windows;  // whose windows of 4 channels are 16 bytes
  of_width_3.width = 3;
  of_width_3.state_columns = of_width_3.state.channel_stride = 2;
  EXPECT_EQ(form(of_width_3), StateAccess::kWindowVectors);
  windows.state.slot_stride += 4, of_width_3.state.slot_stride += 4;
  EXPECT_EQ(form(windows), StateAccess::kWindowVectors);
  EXPECT_EQ(form(of_width_3), StateAccess::kElements) << "slots are aligned to 8 bytes only";
  windows.state_columns = 5;
  windows.state.channel_stride = 5;
  windows.state.slot_stride = 5 * 512;
  EXPECT_EQ(form(windows), StateAccess::kElements) << "windows have gaps between them";
}

TEST(CudaSelect, AddressesThatAreNotAlignedGoTheLongWay) {
  const KernelConfig tiles = chosen(packed_batch(100000, 512, 7));
  alignas(64) static std::uint16_t memory[64];
  const auto launch = [&](const KernelConfig& choice, int x, int out, int state, int weight) {
    LaunchConfig launch;
    TensorPointers at;
    at.x = memory + x;
    at.out = memory + out;
    at.weight = memory + weight;
    at.state = memory + state;
    (void)launch_for(choice, at, launch);
    return launch;
  };
  EXPECT_EQ(launch(tiles, 0, 4, 8, 0).kernel(), Kernel::kTiles) << "8 bytes are enough";
  EXPECT_TRUE(is_general(launch(tiles, 1, 4, 8, 0).kernel()));
  EXPECT_TRUE(is_general(launch(tiles, 0, 2, 8, 0).kernel()));
  EXPECT_EQ(launch(tiles, 0, 4, 1, 0).kernel(), Kernel::kTiles);
  EXPECT_EQ(launch(tiles, 0, 4, 1, 0).params.state_access, StateAccess::kElements);
  EXPECT_TRUE(launch(tiles, 0, 4, 8, 0).params.packed_taps);
  EXPECT_FALSE(launch(tiles, 0, 4, 8, 1).params.packed_taps);
  const KernelConfig small = chosen(packed_batch(1000, 512, 7));
  EXPECT_EQ(launch(small, 0, 2, 8, 0).kernel(), Kernel::kSmallTiles) << "4 bytes are enough";
  EXPECT_TRUE(is_general(launch(small, 1, 2, 8, 0).kernel()));
  const KernelConfig decode = chosen(decode_batch(8192, 256));
  EXPECT_EQ(launch(decode, 0, 8, 8, 0).kernel(), Kernel::kDecode);
  EXPECT_TRUE(is_general(launch(decode, 4, 8, 8, 0).kernel())) << "decode wants 16 bytes";
  const KernelConfig gates = chosen(gated(packed_batch(1000, 512, 7)));
  for (const int gate : {0, 4, 2}) {
    TensorPointers at;
    at.x = at.out = at.output_gate = memory;
    at.input_gate = memory + gate;
    LaunchConfig chosen_launch;
    (void)launch_for(gates, at, chosen_launch);
    EXPECT_EQ(chosen_launch.kernel(), gate == 2 ? Kernel::kGeneral : Kernel::kTiles);
    std::swap(at.input_gate, at.output_gate);
    (void)launch_for(gates, at, chosen_launch);
    EXPECT_EQ(chosen_launch.kernel(), gate == 2 ? Kernel::kGeneral : Kernel::kTiles);
  }
  Problem windows = decode_batch(8192, 64);
  windows.state_columns = windows.state.channel_stride = windows.width;
  windows.state.slot_stride = 4 * 8192;
  windows.state.column_stride = 1;
  windows.base_column = windows.shifted_columns = 1;
  const KernelConfig older = chosen(windows);
  EXPECT_EQ(launch(older, 0, 4, 8, 0).params.state_access, StateAccess::kWindowVectors);
  EXPECT_EQ(launch(older, 0, 4, 4, 0).kernel(), Kernel::kSmallDecode) << "4 channels are 8 bytes";
  EXPECT_EQ(launch(older, 0, 4, 4, 0).params.state_access, StateAccess::kElements)
      << "their windows 32, in accesses of 16";
}

}  // namespace
}  // namespace shortconv::cuda
