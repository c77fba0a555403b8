#include "bench/shapes.hpp"

#include <algorithm>
#include <numeric>
#include <string_view>

namespace shortconv::tools::bench {
namespace {

constexpr std::int64_t kDecodeChannels = 8192;

std::vector<std::int64_t> equal(std::int64_t sequences, std::int64_t tokens) {
  return std::vector<std::int64_t>(static_cast<std::size_t>(sequences), tokens);
}

// 136 short sequences of 1 to 60 tokens that fill 8192 together with one of 4096, which stands in
// their middle.
std::vector<std::int64_t> skewed() {
  constexpr std::int64_t kLong = 4096, kTotal = 8192, kShortOnes = 136;
  std::vector<std::int64_t> lengths;
  std::int64_t left = kTotal - kLong;
  for (std::int64_t i = 0; i < kShortOnes; ++i) {
    const std::int64_t after = kShortOnes - 1 - i;  // still to come, 1 to 60 tokens each
    const std::int64_t wanted = 1 + i * 37 % 60;
    lengths.push_back(std::clamp(wanted, left - 60 * after, left - after));
    left -= lengths.back();
  }
  lengths.insert(lengths.begin() + kShortOnes / 2, kLong);
  return lengths;
}

/// 64 documents of 2 to 254 tokens, 8192 in all.
std::vector<std::int64_t> documents() {
  constexpr std::int64_t kDocuments = 64;
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < kDocuments; ++i) lengths.push_back(2 + 4 * (i * 37 % kDocuments));
  return lengths;
}

std::vector<std::int64_t> mixed() {
  std::vector<std::int64_t> lengths = equal(64, 1);
  lengths.insert(lengths.begin(), 8192 - 64);
  return lengths;
}

std::vector<Shape> prefill_shapes() {
  return {
      {.name = "8192x8192", .description = "one sequence", .channels = 8192, .lengths = {8192}},
      {.name = "8x1024",
       .description = "8192 tokens in 8 sequences",
       .channels = 8192,
       .lengths = equal(8, 1024)},
      {.name = "64x128",
       .description = "8192 tokens in 64 sequences",
       .channels = 8192,
       .lengths = equal(64, 128)},
      {.name = "256x32",
       .description = "8192 tokens in 256 sequences",
       .channels = 8192,
       .lengths = equal(256, 32)},
      {.name = "1024x8",
       .description = "8192 tokens in 1024 sequences",
       .channels = 8192,
       .lengths = equal(1024, 8)},
      {.name = "skewed",
       .description = "one sequence of 4096 tokens and 136 of 1 to 60",
       .channels = 8192,
       .lengths = skewed()},
      {.name = "mixed",
       .description = "one sequence of 8128 tokens and 64 decodes",
       .channels = 8192,
       .lengths = mixed(),
       .resumed_ones = Resumed::kSingleTokens},
      {.name = "prefill-decodes",
       .description = "256 decodes in the shape of a prefill",
       .channels = 8192,
       .lengths = equal(256, 1),
       .resumed_ones = Resumed::kSingleTokens},
      {.name = "8192x2048",
       .description = "one sequence, a quarter of the channels",
       .channels = 2048,
       .lengths = {8192}},
      {.name = "8x1024x2048",
       .description = "8 sequences, a quarter of the channels",
       .channels = 2048,
       .lengths = equal(8, 1024)},
      {.name = "64x128x2048",
       .description = "64 sequences, a quarter of the channels",
       .channels = 2048,
       .lengths = equal(64, 128)},
      {.name = "4096x4096",
       .description = "one sequence, half of tokens and channels",
       .channels = 4096,
       .lengths = {4096}},
      {.name = "1024x8192",
       .description = "one short sequence",
       .channels = 8192,
       .lengths = {1024}},
      {.name = "512x8192",
       .description = "one chunk of a prompt",
       .channels = 8192,
       .lengths = {512}},
      {.name = "64x4",
       .description = "256 tokens in 64 sequences (draft extend)",
       .channels = 8192,
       .lengths = equal(64, 4)},
      {.name = "16x4",
       .description = "64 tokens in 16 sequences (draft extend)",
       .channels = 8192,
       .lengths = equal(16, 4)},
      {.name = "1319x2048",
       .description = "a small batch of 5 sequences, 1 to 604 tokens",
       .channels = 2048,
       .lengths = {200, 511, 3, 604, 1}},
      {.name = "10000x10240",
       .description = "one sequence, sizes that are no powers of two",
       .channels = 10240,
       .lengths = {10000}},
      {.name = "32768x8192",
       .description = "one long sequence",
       .channels = 8192,
       .lengths = {32768},
       .gpu_only = true},
      {.name = "channel-major",
       .description = "one sequence, tokens adjacent in memory",
       .channels = 8192,
       .lengths = {8192},
       .layout = Layout::kChannelMajor},
  };
}

Shape decode_shape(std::int64_t sequences, std::int64_t channels, StateLayout state_layout) {
  constexpr std::int64_t kMostOnCpu = 256;
  Shape shape{.name = "decode-" + std::to_string(sequences),
              .description = "one token of " + std::to_string(sequences) + " sequences",
              .channels = channels,
              .lengths = equal(sequences, 1),
              .op = Op::kDecode,
              .state_layout = state_layout,
              .gpu_only = sequences > kMostOnCpu};
  if (sequences == 1) shape.description = "one token of one sequence";
  if (channels != kDecodeChannels) shape.name += "x" + std::to_string(channels);
  if (state_layout == StateLayout::kWindowInnermost) {
    shape.name += "-ds";
    shape.description = "the same with states [channels, window]";
  }
  return shape;
}

Shape ring_shape(std::int64_t sequences) {
  Shape shape = decode_shape(sequences, kDecodeChannels, StateLayout::kChannelInnermost);
  shape.name += "-ring";
  shape.description = "the same with states that are rings";
  shape.rings = true;
  return shape;
}

/// States as flash-linear-attention has them.
Shape older_shape(std::int64_t sequences, std::int64_t channels) {
  Shape shape = decode_shape(sequences, channels, StateLayout::kChannelInnermost);
  shape.name.replace(0, shape.name.find('-'), "older");
  shape.description = "decode with states [channels, window and a column before it]";
  shape.state_layout = StateLayout::kWindowInnermost;
  shape.older = true;
  return shape;
}

/// As LFM2 has it.
Shape gated_shape(Shape shape, std::string_view size) {
  shape.name = "gated-" + std::string(size);
  shape.description += ", with both gates";
  shape.gated = true;
  return shape;
}

/// As a shape of the list, with a snapshot after every `tokens` of each sequence.
Shape snapshot_shape(Shape shape, std::int64_t tokens) {
  shape.name += "-kept" + std::to_string(tokens);
  shape.description += ", a snapshot every " + std::to_string(tokens);
  shape.snapshot_tokens = tokens;
  return shape;
}

/// Draft tokens, with the window after each of them.
Shape verify_shape(std::int64_t sequences, std::int64_t tokens, std::int64_t channels) {
  Shape shape{.name = "spec-" + std::to_string(sequences) + "x" + std::to_string(tokens),
              .description = std::to_string(tokens) + " draft tokens of " +
                             std::to_string(sequences) + " sequences, with windows",
              .channels = channels,
              .lengths = equal(sequences, tokens),
              .op = Op::kVerify};
  if (channels != kDecodeChannels) shape.name += "x" + std::to_string(channels);
  return shape;
}

/// Two children a node, seven nodes.
Shape tree_shape(std::int64_t sequences, std::int64_t channels) {
  Shape shape = verify_shape(sequences, 7, channels);
  shape.name.replace(0, shape.name.find('-'), "tree");
  shape.description = "the same for a tree of 7 nodes";
  shape.parents = {-1, 0, 0, 1, 1, 2, 2};
  return shape;
}

/// As a shape of the list, in the checked mode.
Shape checked_shape(Shape shape) {
  shape.name += "-check";
  shape.description += ", in the checked mode";
  shape.checked = true;
  return shape;
}

/// The accepted windows of all layers, in one launch.
Shape commit_shape(std::int64_t layers, std::int64_t sequences, std::int64_t tokens) {
  constexpr std::int64_t kMostOnCpu = 4;
  Shape shape = verify_shape(sequences, tokens, kDecodeChannels);
  shape.name.replace(0, shape.name.find('-'), "commit" + std::to_string(layers));
  shape.description = "one of " + std::to_string(tokens) + " windows of " +
                      std::to_string(sequences) + " sequences in " + std::to_string(layers) +
                      " layers";
  shape.commit_layers = layers;
  shape.gpu_only = layers > kMostOnCpu;
  return shape;
}

/// Equal short sequences in the shape of a prefill. Single tokens continue from a state.
Shape short_shape(std::int64_t sequences, std::int64_t tokens, std::int64_t channels) {
  Shape shape{.name = "short-" + std::to_string(sequences) + "x" + std::to_string(tokens),
              .description = std::to_string(sequences) + " sequences of " + std::to_string(tokens) +
                             (tokens == 1 ? " token" : " tokens"),
              .channels = channels,
              .lengths = equal(sequences, tokens),
              .resumed_ones = tokens == 1 ? Resumed::kSingleTokens : Resumed::kEverySecond};
  if (channels != kDecodeChannels) shape.name += "x" + std::to_string(channels);
  return shape;
}

Shape in_place_shape(Shape shape) {
  shape.name = "in-place-" + shape.name;
  shape.description += ", in place";
  shape.in_place = true;
  return shape;
}

/// The gradients of a shape.
Shape backward_shape(Shape shape) {
  constexpr std::int64_t kMostOnCpu = std::int64_t{8192} * 2048;
  shape.name = "back-" + shape.name;
  shape.description += ": gradients";
  shape.gradients = true;
  shape.gpu_only = shape.tokens() * shape.channels > kMostOnCpu;
  return shape;
}

void add_backward_shapes(std::vector<Shape>& all) {
  const auto copy_of = [&](std::string_view name) {
    return *std::ranges::find(all, name, &Shape::name);
  };
  std::vector<Shape> added = {backward_shape({.name = "32768x4096",
                                              .description = "one long sequence",
                                              .channels = 4096,
                                              .lengths = {32768}}),
                              backward_shape({.name = "seq-idx",
                                              .description = "64 documents of 2 to 254 tokens",
                                              .channels = 8192,
                                              .lengths = documents(),
                                              .seq_idx = true})};
  for (const std::string_view name :
       {"8192x8192", "32768x8192", "8x1024", "64x128", "256x32", "skewed", "8192x2048", "4096x4096",
        "1024x8192", "1319x2048", "channel-major"}) {
    added.push_back(backward_shape(copy_of(name)));
  }
  Shape ragged = copy_of("channel-major"), odd = ragged;
  ragged.name = "channel-64x128";
  ragged.description = "64 sequences of 128 tokens, tokens adjacent in memory";
  ragged.lengths = equal(64, 128);
  odd.name = "channel-8191";
  odd.description = "one sequence of an odd length, tokens adjacent in memory";
  odd.lengths = {8191};
  added.push_back(backward_shape(ragged));
  added.push_back(backward_shape(odd));
  added.push_back(backward_shape(gated_shape(copy_of("8192x2048"), "8192x2048")));
  Shape states = copy_of("8x1024");
  states.name = "states-" + states.name;
  states.description += ", with states";
  states.states = true;
  added.push_back(backward_shape(states));
  all.insert(all.end(), added.begin(), added.end());
}

/// The front of a layer over the sequences of a shape.
Shape front_shape(Shape shape, const std::string& name, const std::string& description,
                  const Front& front) {
  shape.name = name;
  shape.description = description;
  shape.channels = front.convolved_channels();
  shape.front = front;
  shape.gpu_only = shape.tokens() > 2048;
  return shape;
}

/// The fronts of Qwen3-Next 80B, of Kimi Linear and of Nemotron-H, and of a quarter of their heads,
/// as tensor parallelism has them.
void add_front_shapes(std::vector<Shape>& all) {
  std::vector<Shape> added;
  const auto add = [&](std::string_view sequences, const std::string& name,
                       const std::string& description, const Front& front) {
    const Shape& shape = *std::ranges::find(all, sequences, &Shape::name);
    added.push_back(front_shape(shape, name, description, front));
  };
  const std::string norms = "q and k normalized, gates";
  for (const std::int64_t parts : {1, 4}) {
    const std::string suffix = parts == 1 ? "" : "-tp4";
    const DeltaFrontOptions next{.key_heads = 16 / parts, .value_heads = 32 / parts};
    DeltaFrontOptions flat = next, with_z = next;
    flat.is_interleaved = false;
    with_z.copies_z = true;
    add("8192x8192", "front-8192" + suffix, "interleaved rows, " + norms, delta_front(next));
    add("8192x8192", "flat-8192" + suffix, "flat rows, " + norms, delta_front(flat));
    add("8192x8192", "front-8192-z" + suffix, "interleaved rows, " + norms + ", z copied",
        delta_front(with_z));
    add("64x128", "front-64x128" + suffix, "interleaved rows, " + norms, delta_front(next));
    add("64x128", "flat-64x128" + suffix, "flat rows, " + norms, delta_front(flat));
    add("skewed", "front-skewed" + suffix, "interleaved rows, " + norms, delta_front(next));
    add("1024x8192", "front-1024" + suffix, "interleaved rows, " + norms, delta_front(next));
    add("8192x8192", "kda-8192" + suffix, "q, k and v", kda_front(32 / parts));
    add("8192x8192", "mamba2-8192" + suffix, "x, B and C",
        mamba2_front(128 / parts, 64, 8 / parts));
    for (const std::int64_t sequences : {1, 64, 256}) {
      const std::string number = std::to_string(sequences);
      add("decode-" + number, "front-decode-" + number + suffix,
          "interleaved rows to packed ones, z copied", delta_decode_front(next));
    }
    Shape eight{.name = {}, .description = {}, .lengths = equal(8, 256)};
    added.push_back(front_shape(eight, "front-8x256" + suffix, "interleaved rows, " + norms,
                                delta_front(next)));
  }
  all.insert(all.end(), added.begin(), added.end());
}

void add_front_backward_shapes(std::vector<Shape>& all) {
  std::vector<Shape> added;
  for (const std::string_view name :
       {"front-8192", "flat-8192", "front-8192-z", "front-64x128", "front-skewed", "front-1024",
        "kda-8192", "mamba2-8192", "front-8192-tp4"}) {
    Shape shape = backward_shape(*std::ranges::find(all, name, &Shape::name));
    shape.gpu_only = true;  // the CPU has no such gradients
    added.push_back(shape);
  }
  all.insert(all.end(), added.begin(), added.end());
}

std::vector<Shape> make_shapes() {
  std::vector<Shape> all = prefill_shapes();
  for (const StateLayout layout : {StateLayout::kChannelInnermost, StateLayout::kWindowInnermost}) {
    for (std::int64_t sequences = 1; sequences <= 512; sequences *= 2) {
      all.push_back(decode_shape(sequences, kDecodeChannels, layout));
    }
  }
  for (const std::int64_t sequences : {64, 256}) all.push_back(ring_shape(sequences));
  for (const std::int64_t sequences : {64, 256, 512}) {
    all.push_back(older_shape(sequences, kDecodeChannels));
  }
  all.push_back(older_shape(512, 2048));
  for (const std::string_view name : {"8192x8192", "8x1024x2048", "64x128x2048"}) {
    const std::string_view size = name.substr(0, name.find("x2048"));
    all.push_back(gated_shape(*std::ranges::find(all, name, &Shape::name), size));
  }
  for (const std::int64_t sequences : {64, 256}) {
    all.push_back(gated_shape(decode_shape(sequences, 2048, StateLayout::kChannelInnermost),
                              std::to_string(sequences) + "x1"));
  }
  for (const std::string_view name : {"8x1024", "64x128"}) {
    all.push_back(snapshot_shape(*std::ranges::find(all, name, &Shape::name), 64));
  }
  for (const std::int64_t sequences : {256, 512}) {
    all.push_back(decode_shape(sequences, 2048, StateLayout::kChannelInnermost));
  }
  for (const std::int64_t channels : {kDecodeChannels, std::int64_t{4096}}) {
    for (const std::int64_t sequences : {64, 256}) {
      all.push_back(verify_shape(sequences, 4, channels));
      all.push_back(tree_shape(sequences, channels));
    }
  }
  for (const std::int64_t tokens : {1, 2, 9, 17}) {
    for (const std::int64_t sequences : {64, 256}) {
      all.push_back(short_shape(sequences, tokens, 2048));
      all.push_back(short_shape(sequences, tokens, kDecodeChannels));
    }
  }
  all.push_back(short_shape(1024, 1, kDecodeChannels));
  for (const std::string_view name : {"64x128", "1024x8", "64x4", "decode-64"}) {
    all.push_back(checked_shape(*std::ranges::find(all, name, &Shape::name)));
  }
  for (const std::string_view name : {"8192x8192", "64x128", "256x32", "64x4"}) {
    all.push_back(in_place_shape(*std::ranges::find(all, name, &Shape::name)));
  }
  all.push_back(commit_shape(4, 64, 4));
  all.push_back(commit_shape(48, 64, 4));
  add_backward_shapes(all);
  add_front_shapes(all);
  add_front_backward_shapes(all);
  return all;
}

}  // namespace

std::int64_t Shape::tokens() const {
  return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
}

std::int64_t Shape::snapshots() const {
  if (snapshot_tokens == 0) return 0;
  std::int64_t count = 0;
  for (const std::int64_t length : lengths) count += length / snapshot_tokens;
  return count;
}

bool Shape::resumed(std::int64_t sequence) const {
  if (op != Op::kForward) return true;
  return resumed_ones == Resumed::kSingleTokens ? lengths[sequence] == 1 : sequence % 2 == 1;
}

std::span<const Shape> shapes() {
  static const std::vector<Shape> all = make_shapes();
  return all;
}

}  // namespace shortconv::tools::bench
