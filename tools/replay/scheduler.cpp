#include "replay/scheduler.hpp"

#include <algorithm>
#include <numeric>

namespace shortconv::tools {
namespace {

// Slot numbers in an order without neighbours, as a pool shows after some time of service: steps of
// about the golden ratio, made coprime with the number of slots so that each comes once.
std::vector<std::int32_t> scattered_slots(std::int64_t count) {
  auto step = std::max<std::int64_t>(1, static_cast<std::int64_t>(0.618 * count));
  while (std::gcd(step, count) != 1) ++step;
  std::vector<std::int32_t> slots;
  slots.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    slots.push_back(static_cast<std::int32_t>(i * step % count));
  }
  return slots;
}

}  // namespace

std::string_view name(CallKind kind) {
  switch (kind) {
    case CallKind::kExtend:
      return "extend";
    case CallKind::kDraftExtend:
      return "draft extend";
    case CallKind::kDecode:
      return "decode";
    case CallKind::kMixed:
      return "mixed";
  }
  return "unknown";
}

Scheduler::Scheduler(std::span<const Request> requests, const SchedulerOptions& options)
    : requests_(requests), options_(options), free_slots_(scattered_slots(options.max_running)) {}

bool Scheduler::next(Call& call) {
  call.segments.clear();

  std::int64_t budget = options_.chunk;
  if (options_.mixed) {
    for (const Active& active : running_) budget -= step_tokens(active);
  }
  std::vector<Active> prefilled;
  add_prompts(budget, call, prefilled);

  const bool has_prompts = !call.segments.empty();
  const bool has_steps = !running_.empty() && (!has_prompts || options_.mixed);
  if (has_steps) {
    for (Active& active : running_) advance(active, step_tokens(active), call);
  }
  if (has_prompts) {
    call.kind = has_steps ? CallKind::kMixed : CallKind::kExtend;
  } else {
    call.kind = options_.draft > 0 ? CallKind::kDraftExtend : CallKind::kDecode;
  }

  running_.insert(running_.end(), prefilled.begin(), prefilled.end());
  std::erase_if(running_, [this](const Active& active) {
    if (active.done < requests_[active.request].tokens()) return false;
    free_slots_.push_back(active.slot);
    return true;
  });

  call.tokens = 0;
  for (const Segment& segment : call.segments) call.tokens += segment.count;
  return !call.segments.empty();
}

std::int64_t Scheduler::step_tokens(const Active& active) const {
  const std::int64_t step = std::max<std::int64_t>(1, options_.draft);
  return std::min(step, requests_[active.request].tokens() - active.done);
}

void Scheduler::advance(Active& active, std::int64_t count, Call& call) const {
  call.segments.push_back({.request = active.request,
                           .first_token = active.done,
                           .count = count,
                           .slot = active.slot,
                           .resumed = active.done > 0,
                           .finishes = active.done + count == requests_[active.request].tokens()});
  active.done += count;
}

bool Scheduler::admit() {
  if (waiting_ == std::ssize(requests_) || free_slots_.empty()) return false;
  prefilling_ = Active{.request = waiting_++, .done = 0, .slot = free_slots_.back()};
  free_slots_.pop_back();
  return true;
}

void Scheduler::add_prompts(std::int64_t budget, Call& call, std::vector<Active>& prefilled) {
  while (budget > 0 && (prefilling_ || admit())) {
    const std::int64_t prompt = requests_[prefilling_->request].prompt_tokens;
    const std::int64_t count = std::min(budget, prompt - prefilling_->done);
    advance(*prefilling_, count, call);
    budget -= count;
    if (prefilling_->done == prompt) {
      prefilled.push_back(*prefilling_);
      prefilling_.reset();
    }
  }
}

}  // namespace shortconv::tools
