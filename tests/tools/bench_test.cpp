#include <gtest/gtest.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "bench/call_layout.hpp"
#include "bench/cpu_call.hpp"
#include "bench/gpu_call.hpp"
#include "bench/measure.hpp"
#include "bench/shapes.hpp"
#include "bench/table.hpp"
#include "commands.hpp"
#include "common/copy.hpp"
#include "common/error.hpp"
#include "common/gpu.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::tools::bench {
namespace {

const Shape& find(std::string_view name) {
  const auto found = std::ranges::find(shapes(), name, &Shape::name);
  if (found == shapes().end()) throw std::runtime_error("no shape " + std::string(name));
  return *found;
}

TEST(BenchShapes, HaveTheSizesOfTheirNames) {
  std::set<std::string_view> names;
  for (const Shape& shape : shapes()) EXPECT_TRUE(names.insert(shape.name).second) << shape.name;
  EXPECT_EQ(find("skewed").tokens(), 8192);
  EXPECT_EQ(find("skewed").sequences(), 137);
  EXPECT_EQ(std::ranges::max(find("skewed").lengths), 4096);
  EXPECT_EQ(std::ranges::count_if(find("skewed").lengths,
                                  [](std::int64_t tokens) { return tokens >= 1 && tokens <= 60; }),
            136);
  EXPECT_EQ(find("mixed").tokens(), 8192);
  EXPECT_EQ(find("64x4").tokens(), 256);
  EXPECT_EQ(find("1024x8").tokens(), 8192);
  EXPECT_EQ(find("1319x2048").tokens(), 1319);
  EXPECT_EQ(find("64x128x2048").channels, 2048);
  EXPECT_EQ(find("64x128x2048").tokens(), 8192);
  for (std::int64_t batch = 1; batch <= 512; batch *= 2) {
    const std::string name = "decode-" + std::to_string(batch);
    EXPECT_EQ(find(name).tokens(), batch);
    EXPECT_EQ(find(name + "-ds").tokens(), batch);
    EXPECT_EQ(find(name + "-ds").state_layout, StateLayout::kWindowInnermost);
  }
  EXPECT_EQ(find("decode-512x2048").channels, 2048);
}

TEST(BenchShapes, OfGradientsAreNamedAfterTheirCalls) {
  for (const Shape& shape : shapes()) {
    EXPECT_EQ(shape.gradients, shape.name.starts_with("back-")) << shape.name;
  }
  EXPECT_EQ(find("back-32768x4096").tokens(), 32768);
  EXPECT_EQ(find("back-32768x4096").channels, 4096);
  EXPECT_EQ(find("back-8x1024").lengths, find("8x1024").lengths);
  EXPECT_EQ(find("back-skewed").lengths, find("skewed").lengths);
  EXPECT_EQ(find("back-channel-major").layout, Layout::kChannelMajor);
  EXPECT_TRUE(find("back-gated-8192x2048").gated);
  EXPECT_TRUE(find("back-states-8x1024").states);
  const Shape& documents = find("back-seq-idx");
  EXPECT_TRUE(documents.seq_idx);
  EXPECT_EQ(documents.tokens(), 8192);
  EXPECT_EQ(documents.sequences(), 64);
  EXPECT_EQ(std::set(documents.lengths.begin(), documents.lengths.end()).size(), 64u);
}

TEST(BenchShapes, ResumeDecodesAndEverySecondPrefill) {
  const auto resumed = [](const Shape& shape) {
    std::int64_t count = 0;
    for (std::int64_t s = 0; s < shape.sequences(); ++s) count += shape.resumed(s) ? 1 : 0;
    return count;
  };
  EXPECT_EQ(resumed(find("8192x8192")), 0);
  EXPECT_EQ(resumed(find("64x128")), 32);
  EXPECT_EQ(resumed(find("1319x2048")), 2);
  EXPECT_EQ(resumed(find("mixed")), 64);
  EXPECT_EQ(resumed(find("prefill-decodes")), 256);
  EXPECT_EQ(resumed(find("decode-64")), 64);
}

TEST(BenchShapes, VeryLargeOnesAreForGpus) {
  for (const Shape& shape : shapes()) {
    const bool large =
        shape.tokens() > 16384 || shape.commit_layers > 4 ||
        (shape.op == Op::kDecode && shape.tokens() > 256) ||
        (shape.gradients && (shape.front || shape.tokens() * shape.channels > 8192 * 2048)) ||
        (shape.front && shape.tokens() > 2048);
    EXPECT_EQ(shape.gpu_only, large) << shape.name;
  }
  EXPECT_FALSE(find("back-8192x2048").gpu_only);
  EXPECT_FALSE(find("back-gated-8192x2048").gpu_only);
}

TEST(CallLayout, CountsInputsOutputsAndStatesOncePerDirection) {
  const Shape shape{.name = "small", .description = "", .channels = 16, .lengths = {4, 4, 4}};
  for (const double pitch : {1.0, 1.5}) {
    const CallLayout layout(shape, {.pitch = pitch});
    // 12 rows in and out; three states written, the one of the second sequence read.
    EXPECT_EQ(layout.moved_bytes(), (2 * 12 + (3 + 1) * 3) * 16 * 2);
    EXPECT_EQ(layout.touched_bytes(), (2 * 12 + 3 * 3) * 16 * 2);
    EXPECT_EQ(layout.x_elements(), 12 * 16 * pitch);
    EXPECT_EQ(layout.out_elements(), 12 * 16 * pitch);
    EXPECT_EQ(layout.state_elements(), 3 * 3 * 16);
  }
}

TEST(CallLayout, StatesMayHaveATypeOfTheirOwn) {
  const Shape shape{.name = "small", .description = "", .channels = 16, .lengths = {4, 4, 4}};
  const CallOptions options{.state_dtype = DType::kF32};
  const CallLayout layout(shape, options);
  EXPECT_EQ(layout.moved_bytes(), 2 * 12 * 16 * 2 + (3 + 1) * 3 * 16 * 4);
  EXPECT_EQ(layout.touched_bytes(), 2 * 12 * 16 * 2 + 3 * 3 * 16 * 4);
  EXPECT_EQ(layout.arguments({}, {}).x.dtype, DType::kBF16);
  EXPECT_EQ(layout.arguments({}, {}).pool.state->dtype, DType::kF32);
  const SetPlaces places = place_set(layout, options);
  EXPECT_GE(places.bytes, places.state + 3 * 3 * 16 * 4);
  CpuCall call(shape, options);
  call.prepare();
  EXPECT_NO_THROW(call.run());
}

TEST(CallLayout, GatesAreThirdsOfTheRowsOfX) {
  const Shape shape{
      .name = "small", .description = "", .channels = 16, .lengths = {4, 4, 4}, .gated = true};
  const CallLayout layout(shape, {});
  EXPECT_EQ(layout.moved_bytes(), (4 * 12 + (3 + 1) * 3) * 16 * 2);
  EXPECT_EQ(layout.touched_bytes(), (4 * 12 + 3 * 3) * 16 * 2);
  EXPECT_EQ(layout.x_elements(), 3 * 12 * 16);
  EXPECT_EQ(layout.out_elements(), 12 * 16);
  std::vector<std::uint16_t> x(3 * 12 * 16);
  const ForwardArgs args = layout.arguments({.x = x.data()}, {});
  EXPECT_EQ(args.input_gate->data, x.data() + 16);
  EXPECT_EQ(args.epilogue.output_gate->data, x.data() + 32);
  for (const TensorRef& rows : {args.x, *args.input_gate, *args.epilogue.output_gate}) {
    EXPECT_EQ(rows.shape[0], 12);
    EXPECT_EQ(rows.shape[1], 16);
    EXPECT_EQ(rows.strides[0], 48);
    EXPECT_EQ(rows.strides[1], 1);
  }
  EXPECT_EQ(args.out.strides[0], 16);
}

TEST(CallLayout, ReadsTheHistoryAndWritesAllColumnsOfAFullState) {
  const Shape shape{.name = "small",
                    .description = "",
                    .channels = 16,
                    .lengths = {1, 1, 1},
                    .op = Op::kDecode,
                    .state_layout = StateLayout::kWindowInnermost,
                    .older = true};
  const CallLayout layout(shape, {});
  EXPECT_EQ(layout.moved_bytes(), (2 * 3 + 3 * 3 + 3 * 4) * 16 * 2);
  EXPECT_EQ(layout.state_elements(), 3 * 4 * 16);
  const ForwardArgs args = layout.arguments({}, {});
  EXPECT_EQ(args.pool.state->shape[1], 4);
  EXPECT_EQ(args.pool.state->strides[1], 1);
  EXPECT_TRUE(args.pool.shift_full_state);
  EXPECT_EQ(args.pool.base_column, 1);
}

TEST(CallLayout, CountsOneIntermediateStateASequenceAndLayerOfACommit) {
  const Shape shape{.name = "small",
                    .description = "",
                    .channels = 16,
                    .lengths = {4, 4, 4},
                    .op = Op::kVerify,
                    .commit_layers = 5};
  const CallLayout layout(shape, {});
  EXPECT_EQ(layout.moved_bytes(), 2 * 5 * 3 * 3 * 16 * 2);
  EXPECT_EQ(layout.touched_bytes(), layout.moved_bytes());
  EXPECT_EQ(layout.x_elements() + layout.out_elements(), 0);
  EXPECT_EQ(layout.window_elements(), 5 * 12 * 3 * 16);
  EXPECT_EQ(layout.accepted(), (std::vector<std::int32_t>{0, 1, 2}));
  const CommitArgs args = layout.commit_arguments({}, {});
  EXPECT_EQ(args.intermediate_states.shape[0], 5);
  EXPECT_EQ(args.intermediate_states.shape[2], 12);
  EXPECT_EQ(args.state.shape[1], 3);
}

TEST(CallLayout, CountsRowsAndStatesOfABackwardCallButNoWeights) {
  Shape shape{
      .name = "small", .description = "", .channels = 16, .lengths = {4, 4, 4}, .gradients = true};
  for (const double pitch : {1.0, 1.5}) {
    const CallLayout layout(shape, {.pitch = pitch, .has_bias = true});
    EXPECT_EQ(layout.moved_bytes(), 3 * 12 * 16 * 2);  // x and grad_out read, grad_x written
    EXPECT_EQ(layout.touched_bytes(), layout.moved_bytes());
    EXPECT_EQ(layout.grad_x_elements(), 12 * 16 * pitch);
    EXPECT_EQ(layout.state_elements() + layout.state_gradient_elements(), 0);
  }
  shape.states = true;
  const CallLayout with_states(shape, {.state_dtype = DType::kF32});
  EXPECT_EQ(with_states.moved_bytes(), 3 * 12 * 16 * 2 + 3 * 3 * 3 * 16 * 4);
  EXPECT_EQ(with_states.state_gradient_elements(), 3 * 3 * 16);
  shape.states = false;
  shape.gated = true;  // both gates read, their gradients written
  EXPECT_EQ(CallLayout(shape, {.width = 7}).moved_bytes(), 7 * 12 * 16 * 2);
  EXPECT_EQ(CallLayout(shape, {.width = 7}).grad_x_elements(), 3 * 12 * 16);
}

TEST(CallLayout, DividesTheRowsOfABackwardCallAsItsShapeSays) {
  Shape shape{
      .name = "small", .description = "", .channels = 16, .lengths = {2, 3}, .gradients = true};
  BackwardArgs args = CallLayout(shape, {}).backward_arguments({}, {});
  EXPECT_EQ(args.query_start_loc->shape[0], 3);
  EXPECT_FALSE(args.seq_idx || args.initial_state || args.bias || args.input_gate);
  EXPECT_EQ(args.grad_weight->dtype, DType::kF32);
  shape.seq_idx = true;
  args = CallLayout(shape, {}).backward_arguments({}, {});
  EXPECT_FALSE(args.query_start_loc);
  EXPECT_EQ(args.seq_idx->shape[0], 5);
  EXPECT_EQ(CallLayout(shape, {}).seq_idx(), (std::vector<std::int32_t>{0, 0, 1, 1, 1}));
  shape.seq_idx = false;
  shape.lengths = {5};
  EXPECT_FALSE(CallLayout(shape, {}).backward_arguments({}, {}).query_start_loc);
}

TEST(CallLayout, GradientsOfGatesFollowThatOfX) {
  const Shape shape{.name = "small",
                    .description = "",
                    .channels = 16,
                    .lengths = {12},
                    .gated = true,
                    .gradients = true};
  std::vector<std::uint16_t> x(3 * 12 * 16), grad_x(3 * 12 * 16);
  const BackwardArgs args =
      CallLayout(shape, {}).backward_arguments({.x = x.data(), .grad_x = grad_x.data()}, {});
  EXPECT_EQ(args.output_gate->data, x.data() + 32);
  EXPECT_EQ(args.x.strides[0], 48);
  EXPECT_EQ(args.grad_input_gate->data, grad_x.data() + 12 * 16);
  EXPECT_EQ(args.grad_output_gate->data, grad_x.data() + 2 * 12 * 16);
  EXPECT_EQ(args.grad_x->strides[0], 16);
  EXPECT_EQ(args.grad_out.strides[0], 16);
}

TEST(CallLayout, WeightsMayHaveATypeOfTheirOwn) {
  for (const bool gradients : {false, true}) {
    const Shape shape{.name = "small",
                      .description = "",
                      .channels = 16,
                      .lengths = {4, 4, 4},
                      .gradients = gradients};
    const CallOptions options{.weight_dtype = DType::kF32, .has_bias = true};
    const CallLayout layout(shape, options);
    EXPECT_EQ(layout.moved_bytes(), CallLayout(shape, {}).moved_bytes());
    EXPECT_EQ(layout.arguments({}, {}).x.dtype, DType::kBF16);
    EXPECT_EQ(layout.arguments({}, {}).weight.dtype, DType::kF32);
    EXPECT_EQ(layout.arguments({}, {}).bias->dtype, DType::kF32);
    EXPECT_EQ(layout.backward_arguments({}, {}).x.dtype, DType::kBF16);
    EXPECT_EQ(layout.backward_arguments({}, {}).weight.dtype, DType::kF32);
    EXPECT_EQ(layout.backward_arguments({}, {}).bias->dtype, DType::kF32);
    CpuCall call(shape, options);
    call.prepare();
    EXPECT_NO_THROW(call.run());
  }
}

TEST(CallLayout, PitchIsTheDistanceOfRowsAsTheyLieInMemory) {
  Shape shape{.name = "small", .description = "", .channels = 16, .lengths = {5}};
  ForwardArgs args = CallLayout(shape, {.pitch = 1.5}).arguments({}, {});
  EXPECT_EQ(args.x.strides[0], 24);
  EXPECT_EQ(args.out.strides[0], 24);
  EXPECT_EQ(args.x.strides[1], 1);
  shape.layout = Layout::kChannelMajor;
  args = CallLayout(shape, {.pitch = 2}).arguments({}, {});
  EXPECT_EQ(args.x.shape[0], 5);
  EXPECT_EQ(args.x.strides[0], 1);
  EXPECT_EQ(args.x.strides[1], 10);
}

TEST(CpuCall, RunsEveryShapeInSmallWithEverySchedule) {
  for (Shape shape : shapes()) {
    shape.channels = 24;
    if (shape.front) {
      shape.front = delta_front({.key_heads = 1, .value_heads = 2, .copies_z = true});
      shape.channels = shape.front->convolved_channels();
    }
    const bool flat_only = shape.snapshots() > 0 || shape.front || shape.in_place;
    for (const double pitch : {1.0, 2.0}) {
      for (const auto& [schedule, name] : capabilities().schedules) {
        if (schedule != Schedule::kFlat && flat_only) continue;
        CallOptions options;
        options.schedule = schedule;
        options.pitch = pitch;
        CpuCall call(shape, options);
        if (shape.gradients && shape.front) {
          EXPECT_THROW(call.prepare(), CommandError) << shape.name;
          continue;
        }
        call.prepare();
        EXPECT_NO_THROW(call.run()) << shape.name << " " << name;
      }
    }
  }
}

TEST(CpuCall, RunsGradientsWithEveryOption) {
  for (Shape shape : shapes()) {
    if (!shape.gradients || shape.front) continue;
    shape.channels = 24;
    for (const auto& [dtype, name] : capabilities().dtypes) {
      CpuCall call(shape, {.dtype = dtype,
                           .weight_dtype = DType::kF32,
                           .width = 7,
                           .activation = Activation::kNone,
                           .pitch = 1.5,
                           .has_bias = true});
      call.prepare();
      EXPECT_NO_THROW(call.run()) << shape.name << " " << name;
    }
  }
}

TEST(GpuSets, AreMoreThanThreeCachesTogetherWithinLimits) {
  constexpr std::int64_t kMiB = 1 << 20;
  EXPECT_EQ(number_of_sets(10 * kMiB, 10 * kMiB, 50 * kMiB), 16);
  EXPECT_EQ(number_of_sets(256 * kMiB, 256 * kMiB, 50 * kMiB), 2);
  EXPECT_EQ(number_of_sets(kMiB / 16, kMiB / 16, 50 * kMiB), 64);
  EXPECT_EQ(number_of_sets(10 * kMiB, 512 * kMiB, 50 * kMiB), 8);     // rows with a wide pitch
  EXPECT_EQ(number_of_sets(3000 * kMiB, 3000 * kMiB, 50 * kMiB), 2);  // cannot do with fewer
}

TEST(GpuSets, TakeWholeTurnsInAGraph) {
  for (int sets = 1; sets <= 64; ++sets) {
    const int calls = calls_of_graph(sets);
    EXPECT_EQ(calls % sets, 0);
    EXPECT_GE(calls, 2 * sets);
    EXPECT_GE(calls, 20);
    EXPECT_LE(calls, 200);
  }
}

TEST(GpuSets, HoldTheTensorsAndACopyOfAsManyBytes) {
  for (const Shape& shape : shapes()) {
    for (const double pitch : {1.0, 1.3}) {
      const CallOptions options{.pitch = pitch};
      const CallLayout layout(shape, options);
      const SetPlaces places = place_set(layout, options);
      EXPECT_GE(places.out, 2 * layout.x_elements());
      EXPECT_GE(places.state, places.out + 2 * layout.out_elements());
      EXPECT_GE(places.bytes, places.state + 2 * layout.state_elements());
      EXPECT_GE(places.copied, layout.moved_bytes() / 2);
      EXPECT_LT(places.copied, layout.moved_bytes() / 2 + 17);
      EXPECT_GE(places.copy_target, places.copied);
      EXPECT_GE(places.bytes, places.copy_target + places.copied);
      EXPECT_GE(places.grad_x, places.windows + 2 * layout.window_elements());
      EXPECT_GE(places.grad_final_state, places.grad_x + 2 * layout.grad_x_elements());
      EXPECT_GE(places.grad_initial_state,
                places.grad_final_state + 2 * layout.state_gradient_elements());
      EXPECT_GE(places.bytes, places.grad_initial_state + 2 * layout.state_gradient_elements());
      EXPECT_GE(3 * places.third, layout.moved_bytes());
      EXPECT_LT(3 * places.third, layout.moved_bytes() + 3 * 17);
      EXPECT_GE(places.second_read, places.third);
      EXPECT_GE(places.combined, places.second_read + places.third);
      EXPECT_GE(places.bytes, places.combined + places.third);
      EXPECT_EQ(places.third % 16, 0);
      for (const std::int64_t place :
           {places.out, places.state, places.windows, places.grad_x, places.grad_final_state,
            places.grad_initial_state, places.copy_target, places.second_read, places.combined}) {
        EXPECT_EQ(place % 256, 0) << shape.name;
      }
      EXPECT_EQ(places.copied % 16, 0);
    }
  }
}

Row gpu_row() {
  Row row;
  row.shape = &find("64x128x2048");
  row.options.schedule = Schedule::kSequenceGrid;
  row.bytes = 100'000'000;
  row.run_us = 33;
  row.copy_us = 30;
  row.host_us = 9;
  row.gpu = GpuTimes{.sets = 3, .calls = 21, .plan_us = 5, .launch_us = 4, .empty_us = 0.5};
  return row;
}

TEST(BenchTable, LinesAreAsWideAsTheirHeaderAndFitAPage) {
  Row row = gpu_row();
  EXPECT_EQ(table_line(row, Columns::kGpu).size(), table_header(Columns::kGpu).size());
  EXPECT_LE(table_line(row, Columns::kGpu).size(), 121u);  // with the line's end
  // Of gradients the lines may be longer.
  const std::size_t longer = table_header(Columns::kGpuWithTwoReads).size();
  EXPECT_EQ(table_line(row, Columns::kGpuWithTwoReads).size(), longer);
  row.gpu->two_reads_us = 12.5;
  EXPECT_EQ(table_line(row, Columns::kGpuWithTwoReads).size(), longer);
  EXPECT_TRUE(table_line(row, Columns::kGpuWithTwoReads).ends_with(" 12.50\n"));
  row.gpu.reset();
  EXPECT_EQ(table_line(row, Columns::kCpu).size(), table_header(Columns::kCpu).size());
  EXPECT_LE(table_line(row, Columns::kCpu).size(), 121u);
  for (const Shape& shape : shapes()) EXPECT_LE(shape.name.size(), 20u) << shape.name;
}

TEST(BenchTable, MarksColdRowsWhoseSetsFitTheCache) {
  Row row = gpu_row();
  EXPECT_EQ(table_line(row, Columns::kGpu).find("cold*"), std::string::npos);
  row.gpu->past_cache = false;
  EXPECT_NE(table_line(row, Columns::kGpu).find("cold*"), std::string::npos);
  row.gpu->mode = CacheMode::kWarm;
  EXPECT_EQ(table_line(row, Columns::kGpu).find('*'), std::string::npos);
}

TEST(BenchTable, JsonHasWhatAReportReadsAndTheGpusTimes) {
  Row row = gpu_row();
  const auto json = to_json(row);
  for (const char* key :
       {"case",          "schedule", "dtype",   "tokens",    "channels",      "sequences",
        "threads",       "bytes",    "run_us",  "host_us",   "copy_us",       "gb_per_s",
        "copy_gb_per_s", "ratio",    "pitch",   "mode",      "sets",          "calls_per_graph",
        "weight_dtype",  "empty_us", "plan_us", "launch_us", "bare_launch_us"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(json["copy_plus_us"], 3);
  EXPECT_EQ(json["mode"], "cold");
  EXPECT_FALSE(json.contains("overlapped_copy_us"));
  row.gpu->overlapped_copy_us = 29;
  EXPECT_EQ(to_json(row)["overlapped_copy_us"], 29);
  EXPECT_FALSE(json.contains("two_reads_us"));
  row.gpu->two_reads_us = 31;
  EXPECT_EQ(to_json(row)["two_reads_us"], 31);
  row.gpu.reset();
  EXPECT_FALSE(to_json(row).contains("mode"));
}

// What `shortconv bench` with these arguments ends with.
std::string refusal(const std::string& arguments) {
  CLI::App app;
  add_bench_command(app);
  try {
    app.parse("bench --shape decode-1 --repeats 1 --json /dev/null " + arguments);
  } catch (const CommandError& error) {
    EXPECT_EQ(error.exit_code(), kExitUsage);
    return error.what();
  }
  return "accepted";
}

TEST(BenchCommand, RefusesWhatItCannotMeasure) {
  EXPECT_EQ(refusal("--mode warm"), "--mode: goes with --backend cuda only");
  EXPECT_EQ(refusal("--programmatic-launch"),
            "--programmatic-launch: goes with --backend cuda only");
  EXPECT_TRUE(refusal("--shape 1x1").starts_with("--shape: no '1x1'; there are\n"));
  EXPECT_TRUE(refusal("--schedule none").starts_with("--schedule: 'none' is not one of"));
  EXPECT_TRUE(refusal("--backend gpu").starts_with("--backend: 'gpu' is not one of"));
  EXPECT_TRUE(refusal("--weight-dtype f8").starts_with("--weight-dtype: 'f8' is not one of"));
}

TEST(BenchCommand, SaysWhyThereIsNoCuda) {
  for (const BackendInfo& info : backend_info()) {
    if (info.name != name(BackendId::kCuda)) continue;
    if (info.available) GTEST_SKIP() << info.detail;
    EXPECT_EQ(refusal("--backend cuda"), "--backend: 'cuda' is not available: " + info.detail);
    EXPECT_EQ(gpu_count(), 0);
  }
}

TEST(ParallelCopy, CopiesAllBytesAndNoMore) {
  for (const std::size_t bytes : {0, 1, 63, 64, 65, 1000, 100001}) {
    for (const int threads : {0, 1, 2, 3, 8}) {
      std::vector<unsigned char> source(bytes + 1), target(bytes + 1, 0xee);
      for (std::size_t i = 0; i <= bytes; ++i) source[i] = static_cast<unsigned char>(i * 7 + 1);
      parallel_copy(target.data(), source.data(), bytes, threads);
      EXPECT_EQ(std::memcmp(target.data(), source.data(), bytes), 0);
      EXPECT_EQ(target[bytes], 0xee);
    }
  }
}

}  // namespace
}  // namespace shortconv::tools::bench
