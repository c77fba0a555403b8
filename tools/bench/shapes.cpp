#include "bench/shapes.hpp"

#include <algorithm>
#include <numeric>

namespace shortconv::tools::bench {
namespace {

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

std::vector<std::int64_t> mixed() {
  std::vector<std::int64_t> lengths = equal(64, 1);
  lengths.insert(lengths.begin(), 8192 - 64);
  return lengths;
}

std::vector<Shape> make_shapes() {
  return {
      {"8192x8192", "one sequence", 8192, {8192}},
      {"8x1024", "8192 tokens in 8 sequences", 8192, equal(8, 1024)},
      {"64x128", "8192 tokens in 64 sequences", 8192, equal(64, 128)},
      {"256x32", "8192 tokens in 256 sequences", 8192, equal(256, 32)},
      {"skewed", "one sequence of 4096 tokens and 136 of 1 to 60", 8192, skewed()},
      {"mixed", "one sequence of 8128 tokens and 64 decodes", 8192, mixed()},
      {"8192x2048", "one sequence, a quarter of the channels", 2048, {8192}},
      {"1024x8192", "one short sequence", 8192, {1024}},
      {"64x4", "256 tokens in 64 sequences (draft extend)", 8192, equal(64, 4)},
      {"10000x10240", "one sequence, sizes that are no powers of two", 10240, {10000}},
      {"channel-major",
       "one sequence, tokens adjacent in memory",
       8192,
       {8192},
       Op::kForward,
       Layout::kChannelMajor},
      {"decode-1", "one token of one sequence", 8192, equal(1, 1), Op::kDecode},
      {"decode-64", "one token of 64 sequences", 8192, equal(64, 1), Op::kDecode},
      {"decode-256", "one token of 256 sequences", 8192, equal(256, 1), Op::kDecode},
      {"decode-1-ds", "the same with states [channels, window]", 8192, equal(1, 1), Op::kDecode,
       Layout::kTokenMajor, StateLayout::kWindowInnermost},
      {"decode-64-ds", "the same with states [channels, window]", 8192, equal(64, 1), Op::kDecode,
       Layout::kTokenMajor, StateLayout::kWindowInnermost},
      {"decode-256-ds", "the same with states [channels, window]", 8192, equal(256, 1), Op::kDecode,
       Layout::kTokenMajor, StateLayout::kWindowInnermost},
  };
}

}  // namespace

std::int64_t Shape::tokens() const {
  return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
}

bool Shape::resumed(std::int64_t sequence) const {
  if (op == Op::kDecode || name == "mixed") return lengths[sequence] == 1;
  return sequence % 2 == 1;
}

std::span<const Shape> shapes() {
  static const std::vector<Shape> all = make_shapes();
  return all;
}

}  // namespace shortconv::tools::bench
