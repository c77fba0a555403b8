// The report of the checked mode for tests, and what one should say.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <set>
#include <string>

#include "shortconv/violation.hpp"

namespace shortconv {

struct Found {
  std::int64_t count, first;
  friend bool operator==(const Found&, const Found&) = default;
};
using Expected = std::map<Violation, Found>;  // all others: none

inline constexpr std::int64_t kGarbage = 0x5a5a5a5a5a5a5a5a;

// A report of any strides between words that nobody may touch, all garbage before the call.
class Report {
 public:
  explicit Report(std::int64_t row = 2, std::int64_t column = 1) : row_(row), column_(column) {
    words_.fill(kGarbage);
  }
  [[nodiscard]] TensorRef view() {
    TensorRef view = TensorRef::contiguous(&words_[kOrigin], DType::kI64, {kViolations, 2});
    view.strides[0] = row_;
    view.strides[1] = column_;
    return view;
  }
  [[nodiscard]] Found of(Violation violation) const {
    const auto v = static_cast<std::int64_t>(violation);
    return {words_[word(v, kViolationCount)], words_[word(v, kViolationFirst)]};
  }
  void expect(const Expected& expected, const std::string& where = "") const {
    std::set<std::size_t> written;
    for (std::int64_t v = 0; v < kViolations; ++v) {
      const auto violation = static_cast<Violation>(v);
      const auto found = expected.find(violation);
      const Found wanted = found == expected.end() ? Found{0, -1} : found->second;
      EXPECT_EQ(of(violation).count, wanted.count) << name(violation) << ", count; " << where;
      EXPECT_EQ(of(violation).first, wanted.first) << name(violation) << ", first; " << where;
      written.insert({word(v, 0), word(v, 1)});
    }
    for (std::size_t i = 0; i < words_.size(); ++i) {
      if (written.contains(i)) continue;
      EXPECT_EQ(words_[i], kGarbage) << "word " << i << "; " << where;
    }
  }

 private:
  static constexpr std::int64_t kOrigin = 40;
  [[nodiscard]] std::size_t word(std::int64_t violation, std::int64_t column) const {
    return static_cast<std::size_t>(kOrigin + violation * row_ + column * column_);
  }
  std::int64_t row_, column_;
  std::array<std::int64_t, 80> words_;
};

}  // namespace shortconv
