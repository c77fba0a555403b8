// libFuzzer over valid problems: the random cases of shortconv verify, with draws that the fuzzer
// chooses, on the CPU against the reference, gradients and groups too. Types, index types, strides,
// overlapping and reversed axes, features, schedules and numbers of threads; then other layouts,
// the call cut into several, and index values that lead nowhere.
//
// Build: cmake --preset fuzz && cmake --build --preset fuzz; run:
// build/fuzz/tests/shortconv_fuzz_problems -max_len=512 -len_control=0 -max_total_time=600
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <span>
#include <string>

#include "shortconv/capability.hpp"
#include "verify/backward_case.hpp"
#include "verify/case.hpp"
#include "verify/check.hpp"
#include "verify/check_backward.hpp"
#include "verify/commit_case.hpp"
#include "verify/grouped_case.hpp"
#include "verify/paths.hpp"

namespace shortconv::tools::verify {
namespace {

void require_no(const std::optional<std::string>& failure, const std::string& problem) {
  if (!failure) return;
  std::fprintf(stderr, "%s\n%s\n", problem.c_str(), failure->c_str());
  std::abort();
}

void check(const Case& problem, bool further) {
  const Verdict verdict = check_case(problem, BackendId::kCpu);
  require_no(verdict.unsupported, to_string(problem));
  require_no(verdict.failure, to_string(problem));
  if (!further) return;
  require_no(check_paths(problem, BackendId::kCpu), to_string(problem));
  require_no(check_bad_values(problem, BackendId::kCpu), to_string(problem));
}

void check(const BackwardCase& problem, bool further) {
  const Verdict verdict = check_backward(problem, BackendId::kCpu);
  require_no(verdict.unsupported, to_string(problem));
  require_no(verdict.failure, to_string(problem));
  if (!further) return;
  require_no(check_backward_paths(problem, BackendId::kCpu), to_string(problem));
  require_no(check_bad_values(problem, BackendId::kCpu), to_string(problem));
}

void check(const CommitCase& problem) {
  require_no(check_commit(problem, BackendId::kCpu).failure, to_string(problem));
}

void check(const GroupedCase& problem) {
  const Verdict verdict = check_grouped(problem, BackendId::kCpu);
  require_no(verdict.unsupported, to_string(problem));
  require_no(verdict.failure, to_string(problem));
  require_no(check_group_operations(problem, BackendId::kCpu), to_string(problem));
}

}  // namespace
}  // namespace shortconv::tools::verify

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using namespace shortconv::tools::verify;
  if (size < 2) return 0;
  // The first two bytes: kind of case, seed of all that has no byte.
  const std::uint8_t kind = bytes[0];
  const std::uint64_t seed = bytes[1];
  const std::span<const std::uint8_t> choices(bytes + 2, size - 2);
  if (kind % 8 == 0) {
    check(make_commit_case(seed, choices));
  } else if (kind % 8 == 7) {
    check(make_grouped_case(seed, choices));
  } else if (kind % 8 < 3) {
    check(make_backward_case(seed, choices), kind % 16 < 8);
  } else {
    check(make_case(seed, choices), kind % 8 < 5);
  }
  return 0;
}
