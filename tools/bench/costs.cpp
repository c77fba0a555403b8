#include "bench/costs.hpp"

#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <vector>

namespace shortconv::tools::bench {
namespace {

constexpr std::int64_t kChannels = 8192;
constexpr int kUsualWidth = 4;  // of most models
constexpr std::array kEveryWidth{2, 3, 4, 5, 6, 7, 8, 12, 64};

/// Kinds of calls, as bits.
enum Kinds : unsigned {
  kPrefill = 1,
  kRagged = 2,
  kDecode = 4,
  kDrafts = 8,
  kTrees = 16,
  kForwards = kPrefill | kRagged,
  kOrdinary = kForwards | kDecode,
  kVerifies = kDrafts | kTrees,
  kAny = kOrdinary | kVerifies,
};

struct Operation {
  Kinds kind;
  std::string_view name;
  std::int64_t sequences;
  std::int64_t tokens;  // of each
  Op op = Op::kForward;
  std::vector<std::int32_t> parents = {};
};

std::vector<Operation> operations() {
  return {
      {kPrefill, "prefill", 1, 8192},
      {kRagged, "ragged", 64, 128},
      {kDecode, "decode", 256, 1, Op::kDecode},
      {kDrafts, "drafts", 64, 4, Op::kVerify},
      {kTrees, "trees", 64, 7, Op::kVerify, {-1, 0, 0, 1, 1, 2, 2}},
  };
}

struct Types {
  std::string_view name;
  DType rows;
  DType weights;
  DType states;
};

constexpr Types kBF16{"bf16", DType::kBF16, DType::kBF16, DType::kBF16};
constexpr Types kF32States{"bf16-s32", DType::kBF16, DType::kBF16, DType::kF32};
constexpr std::array kEveryType{
    kBF16,
    Types{"f16", DType::kF16, DType::kF16, DType::kF16},
    Types{"f32", DType::kF32, DType::kF32, DType::kF32},
    Types{"bf16-w32", DType::kBF16, DType::kF32, DType::kBF16},
    kF32States,
    Types{"bf16-ws32", DType::kBF16, DType::kF32, DType::kF32},
};

/// What a call may have besides.
struct CallFeature {
  std::string_view name;
  Kinds kinds;  // that may have it
  void (*add)(Shape& shape, CallOptions& options);
};

constexpr CallFeature kNone{"none", kAny, [](Shape&, CallOptions&) {}};
constexpr CallFeature kGates{"gates", kAny, [](Shape& shape, CallOptions& options) {
                               shape.gated = true;
                               options.activation = Activation::kNone;  // as in LFM2
                             }};
constexpr CallFeature kWindows{"window-innermost", kAny, [](Shape& shape, CallOptions&) {
                                 shape.state_layout = StateLayout::kWindowInnermost;
                               }};
/// Has no states.
constexpr CallFeature kSeqIdx{"seq-idx", kForwards,
                              [](Shape& shape, CallOptions&) { shape.seq_idx = true; }};
constexpr std::array kEveryFeature{
    CallFeature{"bias", kAny, [](Shape&, CallOptions& options) { options.has_bias = true; }},
    kGates,
    CallFeature{"residual", kAny, [](Shape& shape, CallOptions&) { shape.residual = true; }},
    kWindows,
    CallFeature{"circular", kAny, [](Shape& shape, CallOptions&) { shape.rings = true; }},
    CallFeature{"shift-full-state", kOrdinary,
                [](Shape& shape, CallOptions&) {  // as flash-linear-attention has them
                  shape.older = true;
                  shape.state_layout = StateLayout::kWindowInnermost;
                }},
    CallFeature{"snapshots", kOrdinary,
                [](Shape& shape, CallOptions&) {
                  shape.snapshot_tokens = shape.op == Op::kDecode ? 1 : 64;
                }},
    CallFeature{"window-slots", kVerifies,
                [](Shape& shape, CallOptions&) { shape.window_slots = true; }},
    CallFeature{"long-chains", kDrafts,
                [](Shape& shape, CallOptions&) {
                  for (std::int64_t& length : shape.lengths) length = 16;
                }},
    kSeqIdx,
    CallFeature{"in-place", kOrdinary, [](Shape& shape, CallOptions&) { shape.in_place = true; }},
    CallFeature{"dilation", kOrdinary, [](Shape&, CallOptions& options) { options.dilation = 2; }},
    CallFeature{"checked", kAny, [](Shape& shape, CallOptions&) { shape.checked = true; }},
    CallFeature{"pitch", kAny, [](Shape&, CallOptions& options) { options.pitch = 1.5; }},
    CallFeature{"odd-pitch", kAny,
                [](Shape&, CallOptions& options) {
                  options.pitch = static_cast<double>(kChannels + 1) / kChannels;
                }},
    CallFeature{"odd-address", kAny, [](Shape&, CallOptions& options) { options.row_offset = 1; }},
    CallFeature{"channels-first", kAny,
                [](Shape& shape, CallOptions&) { shape.layout = Layout::kChannelMajor; }},
};

Cost make_cost(const Operation& operation, int width, const Types& types,
               const CallFeature& feature) {
  Cost cost{
      .operation = std::string(operation.name),
      .types = std::string(types.name),
      .feature = std::string(feature.name),
      .shape = {.name = fmt::format("{}-{}-{}", operation.name, width, types.name),
                .description = {},
                .channels = kChannels,
                .lengths =
                    std::vector(static_cast<std::size_t>(operation.sequences), operation.tokens),
                .op = operation.op,
                .parents = operation.parents,
                .gpu_only = true},
      .options = {.dtype = types.rows,
                  .state_dtype = types.states,
                  .weight_dtype = types.weights,
                  .width = width,
                  .backend = BackendId::kCuda,
                  .programmatic_launch = true},  // the default of the library
  };
  if (feature.name != kNone.name) cost.shape.name += fmt::format("-{}", feature.name);
  feature.add(cost.shape, cost.options);
  return cost;
}

std::vector<Cost> make_costs() {
  std::vector<Cost> all;
  for (const Operation& operation : operations()) {
    const auto add = [&](int width, const Types& types, const CallFeature& feature) {
      if ((feature.kinds & operation.kind) == 0) return;
      all.push_back(make_cost(operation, width, types, feature));
    };
    for (const int width : kEveryWidth) {
      for (const Types& types : kEveryType) add(width, types, kNone);
    }
    for (const CallFeature& feature : kEveryFeature) add(kUsualWidth, kBF16, feature);
    add(3, kBF16, kWindows);
    for (const int width : {3, 7}) add(width, kBF16, kGates);  // LFM2 and LFM3
    // In pairs the prefill of 64 sequences stands for both.
    if (operation.kind == kPrefill) continue;
    for (const CallFeature& feature : kEveryFeature) {
      if (feature.name != kSeqIdx.name) add(kUsualWidth, kF32States, feature);
    }
    for (const int width : {3, 7}) {
      for (const Types& types : kEveryType) {
        if (types.name != kBF16.name) add(width, types, kGates);
      }
    }
  }
  return all;
}

}  // namespace

std::span<const Cost> costs() {
  static const std::vector<Cost> all = make_costs();
  return all;
}

nlohmann::ordered_json to_json(const Cost& cost, std::string_view kernel, const Row* row) {
  nlohmann::ordered_json json = {{"case", cost.shape.name},     {"operation", cost.operation},
                                 {"width", cost.options.width}, {"types", cost.types},
                                 {"feature", cost.feature},     {"kernel", kernel}};
  if (row != nullptr) {
    json.update({{"bytes", row->bytes},
                 {"run_us", row->run_us},
                 {"copy_us", row->copy_us},
                 {"ratio", row->ratio()}});
  }
  return json;
}

std::string cost_header(bool is_measured) {
  const std::string header = fmt::format("{:<34} {:<34}", "case", "kernel");
  return is_measured ? fmt::format("{} {:>8} {:>8} {:>6}\n", header, "run us", "copy us", "ratio")
                     : header + "\n";
}

std::string cost_line(const Cost& cost, std::string_view kernel, const Row* row) {
  const std::string line = fmt::format("{:<34} {:<34}", cost.shape.name, kernel);
  if (row == nullptr) return line + "\n";
  return fmt::format("{} {:>8.2f} {:>8.2f} {:>6.3f}\n", line, row->run_us, row->copy_us,
                     row->ratio());
}

}  // namespace shortconv::tools::bench
