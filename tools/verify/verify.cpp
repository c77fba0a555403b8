// shortconv verify: random problems on one backend against the fp64 reference.
#include <fmt/format.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "commands.hpp"
#include "common/arguments.hpp"
#include "common/error.hpp"
#include "common/names.hpp"
#include "common/output_file.hpp"
#include "common/progress.hpp"
#include "common/random.hpp"
#include "shortconv/capability.hpp"
#include "verify/backward_case.hpp"
#include "verify/case.hpp"
#include "verify/check.hpp"
#include "verify/check_backward.hpp"
#include "verify/commit_case.hpp"
#include "verify/filter.hpp"
#include "verify/grouped_backward_case.hpp"
#include "verify/grouped_case.hpp"
#include "verify/paths.hpp"

namespace shortconv::tools {
namespace {

using verify::Verdict;

// Of this many seeds, one makes a commit case, two make gradient cases, one makes a case with
// groups and one the gradients of one.
constexpr std::uint64_t kCommits = 12;

using Case = std::variant<verify::Case, verify::CommitCase, verify::BackwardCase,
                          verify::GroupedCase, verify::GroupedBackwardCase>;

// Half of the others are as engines have them: fast kernels take little else.
Case make_case(std::uint64_t seed, BackendId backend) {
  const std::uint64_t kind = mix(seed ^ kCommits);
  if (kind % kCommits == 0) return verify::make_commit_case(seed);
  if (kind % kCommits <= 2) return verify::make_backward_case(seed);
  if (kind % kCommits == 3) return verify::make_grouped_case(seed);
  const bool has_group_gradients = backend != BackendId::kCpu;
  if (has_group_gradients && kind % kCommits == 4) return verify::make_grouped_backward_case(seed);
  if (kind % 2 == 0) return verify::make_case(seed);
  const auto types = capabilities().dtypes;
  return verify::make_fast_case(seed, types[kind / 2 % types.size()].value);
}
auto traits(const Case& problem) {
  return std::visit([](const auto& one) { return verify::traits(one); }, problem);
}
std::string to_string(const Case& problem) {
  return std::visit([](const auto& one) { return verify::to_string(one); }, problem);
}
std::uint64_t seed_of(const Case& problem) {
  return std::visit([](const auto& one) { return one.seed; }, problem);
}

struct Options {
  std::int64_t cases = 1000;
  std::uint64_t seed = 1;
  std::optional<std::uint64_t> case_seed;
  std::string backend = "cpu";
  std::vector<std::string> only;
};

// Walks the case seeds that a run seed stands for, past those that do not match.
class Cases {
 public:
  Cases(std::uint64_t seed, BackendId backend, verify::Filter filter)
      : seed_(mix(seed)), backend_(backend), filter_(std::move(filter)) {}

  Case next() {
    constexpr int kMostMisses = 40000;  // 2 to 4 seconds
    for (int miss = 0; miss < kMostMisses; ++miss) {
      Case problem = make_case(mix(seed_ + drawn_++) >> 32, backend_);  // short to retype
      if (filter_.empty() || verify::matches(traits(problem), filter_)) return problem;
    }
    throw CommandError(kExitUsage,
                       fmt::format("--only: none of {} random cases has that", kMostMisses));
  }

 private:
  std::uint64_t seed_;
  BackendId backend_;
  std::uint64_t drawn_ = 0;
  verify::Filter filter_;
};

struct Rounding {
  std::int64_t outputs = 0;
  std::int64_t correct = 0;
};

struct Totals {
  std::int64_t cases = 0;
  std::int64_t failures = 0;
  std::map<std::string, std::int64_t> unsupported;  // by message
  std::map<std::string_view, Rounding> rounding;    // by output type
};

// A share, because the further checks of a case take several times as long as the case. From its
// seed, so that a repetition does the same.
bool is_checked_further(std::uint64_t case_seed) { return mix(~case_seed) % 4 == 0; }

Verdict check(const verify::Case& problem, BackendId backend, Totals& totals) {
  Verdict verdict = verify::check_case(problem, backend);
  if (verdict.unsupported) return verdict;
  if (is_checked_further(problem.seed)) {
    if (!verdict.failure) verdict.failure = verify::check_paths(problem, backend);
    if (!verdict.failure) verdict.failure = verify::check_bad_values(problem, backend);
  }
  Rounding& rounding = totals.rounding[name(problem.out.dtype)];
  rounding.outputs += verdict.outputs;
  rounding.correct += verdict.correctly_rounded;
  return verdict;
}

Verdict check(const verify::CommitCase& problem, BackendId backend, Totals&) {
  return verify::check_commit(problem, backend);
}

Verdict check(const verify::BackwardCase& problem, BackendId backend, Totals&) {
  Verdict verdict = verify::check_backward(problem, backend);
  if (verdict.unsupported || !is_checked_further(problem.seed)) return verdict;
  if (!verdict.failure) verdict.failure = verify::check_backward_paths(problem, backend);
  if (!verdict.failure) verdict.failure = verify::check_bad_values(problem, backend);
  return verdict;
}

Verdict check(const verify::GroupedCase& problem, BackendId backend, Totals&) {
  Verdict verdict = verify::check_grouped(problem, backend);
  if (verdict.unsupported || !is_checked_further(problem.seed)) return verdict;
  if (!verdict.failure) verdict.failure = verify::check_group_operations(problem, backend);
  return verdict;
}

Verdict check(const verify::GroupedBackwardCase& problem, BackendId backend, Totals&) {
  Verdict verdict = verify::check_grouped_backward(problem, backend);
  if (verdict.unsupported || !is_checked_further(problem.seed)) return verdict;
  if (!verdict.failure) verdict.failure = verify::check_grouped_backward_repeats(problem, backend);
  return verdict;
}

void run_one(const Case& problem, BackendId backend, Totals& totals) {
  ++totals.cases;
  const Verdict verdict =
      std::visit([&](const auto& one) { return check(one, backend, totals); }, problem);
  if (verdict.unsupported) ++totals.unsupported[*verdict.unsupported];
  if (!verdict.failure) return;
  ++totals.failures;
  write_stdout(fmt::format(
      "FAILED {}\n  {}\n  repeat with: shortconv verify --case-seed {} --backend {}\n\n",
      to_string(problem), *verdict.failure, seed_of(problem), name(backend)));
}

std::string summary(const Totals& totals, BackendId backend) {
  std::string text = fmt::format("verified {} cases on {}: {} failures", totals.cases,
                                 name(backend), totals.failures);
  std::string_view separator = "; outputs correctly rounded: ";
  for (const auto& [dtype, rounding] : totals.rounding) {
    if (rounding.outputs == 0) continue;
    // Cut off, not rounded: 100.00% means all.
    const auto share =
        10000.0 * static_cast<double>(rounding.correct) / static_cast<double>(rounding.outputs);
    text += fmt::format("{}{} {:.2f}%", separator, dtype, std::floor(share) / 100);
    separator = ", ";
  }
  for (const auto& [message, count] : totals.unsupported) {
    text += fmt::format("\nnot supported, {} cases: {}", count, message);
  }
  return text;
}

void run_verify(const Options& options) {
  constexpr std::int64_t kMostFailures = 3;  // printed in full; then it is time to look at them
  const BackendId backend = parse_name(capabilities().backends, "--backend", options.backend);
  require_available(backend);  // or every case would fail, and not for a reason of its own
  const verify::Filter filter = verify::parse_filter(options.only);
  Totals totals;
  if (options.case_seed) {
    const Case problem = make_case(*options.case_seed, backend);
    run_one(problem, backend, totals);
    if (totals.failures == 0) write_stdout(to_string(problem));
  } else {
    Cases cases(options.seed, backend, filter);
    Progress progress("verify", options.cases);
    while (totals.cases < options.cases && totals.failures < kMostFailures) {
      run_one(cases.next(), backend, totals);
      progress.update(totals.cases);
    }
  }
  write_stdout(summary(totals, backend) + "\n");
  if (totals.failures > 0) {
    throw CommandError(kExitFailed,
                       fmt::format("{} of {} cases failed", totals.failures, totals.cases));
  }
}

}  // namespace

void add_verify_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "verify", "Run random problems and hold results and states against the fp64 reference");
  auto options = std::make_shared<Options>();
  auto* cases = command->add_option("--cases", options->cases, "How many problems")
                    ->check(whole_number(1, kMostCount))
                    ->capture_default_str();
  auto* seed = command->add_option("--seed", options->seed, "Another seed, other problems")
                   ->check(seed_number())
                   ->capture_default_str();
  auto* only = command->add_option("--only", options->only,
                                   "KEY=VALUE that problems must have, such as dtype=bf16 or "
                                   "width=4");
  command
      ->add_option("--case-seed", options->case_seed,
                   "Run and print the one problem that a failure named")
      ->check(seed_number())
      ->excludes(cases)
      ->excludes(seed)
      ->excludes(only);
  command->add_option("--backend", options->backend, "Backend under test")->capture_default_str();
  command->callback([options] { run_verify(*options); });
}

}  // namespace shortconv::tools
