// The tests of the checked mode run on each backend of the host.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "call.hpp"
#include "violation_report.hpp"

namespace shortconv {

/// Calls that are run twice with one report, so that the second finds what the first one left.
class CheckedCalls : public testing::TestWithParam<BackendId> {
 protected:
  static Call make(std::vector<std::int32_t> bounds, std::int64_t rows = -1) {
    Call call(std::move(bounds), rows);
    call.args.options.backend = GetParam();
    return call;
  }
  static void expect(Call call, const Expected& expected, const std::string& where = "") {
    Report report;
    call.args.options.violations = report.view();
    for (int repetition = 0; repetition < 2; ++repetition) {
      call.run();
      report.expect(expected, where);
    }
  }
};

}  // namespace shortconv
