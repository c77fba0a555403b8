#include "replay/scheduler.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "replay/hash.hpp"

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
    case CallKind::kVerify:
      return "verify";
    case CallKind::kCommit:
      return "commit";
  }
  return "unknown";
}

std::int64_t first_with_prefix(std::span<const Request> requests, std::int64_t request,
                               std::int64_t tokens) {
  while (tokens <= requests[request].shared_tokens) request = requests[request].shares_with;
  return request;
}

Scheduler::Scheduler(std::span<const Request> requests, const SchedulerOptions& options)
    : requests_(requests),
      options_(options),
      free_slots_(scattered_slots(options.max_running)),
      cache_(static_cast<std::int32_t>(options.max_running), options.prefix_slots) {}

bool Scheduler::next(Call& call) {
  if (!commit_.segments.empty()) {
    call = std::exchange(commit_, {});
    return true;
  }
  call = {};
  cache_.begin_call();

  std::int64_t budget = options_.chunk;
  if (options_.mixed) {
    for (const Active& active : running_) budget -= step_tokens(active);
  }
  std::vector<Active> prefilled;
  add_prompts(budget, call, prefilled);

  const bool has_prompts = !call.segments.empty();
  const bool has_steps = !running_.empty() && (!has_prompts || options_.mixed);
  if (has_steps) {
    for (Active& active : running_) {
      if (options_.tree.empty()) {
        advance(active, step_tokens(active), call);
      } else {
        verify_step(active, call);
      }
    }
  }
  if (has_prompts) {
    call.kind = has_steps ? CallKind::kMixed : CallKind::kExtend;
  } else if (!options_.tree.empty()) {
    call.kind = CallKind::kVerify;
  } else {
    call.kind = options_.draft > 0 ? CallKind::kDraftExtend : CallKind::kDecode;
  }

  running_.insert(running_.end(), prefilled.begin(), prefilled.end());
  std::erase_if(running_, [this](const Active& active) {
    if (active.done < requests_[active.request].tokens()) return false;
    free_slots_.push_back(active.slot);
    return true;
  });

  for (const Segment& segment : call.segments) {
    call.tokens += segment.count;
    if (!segment.is_draft()) call.advanced += segment.count;
    if (segment.begins_from_snapshot()) call.advanced += segment.first_token;
  }
  return !call.segments.empty();
}

std::int64_t Scheduler::step_tokens(const Active& active) const {
  if (!options_.tree.empty()) return options_.tree.rows();
  const std::int64_t step = std::max<std::int64_t>(1, options_.draft);
  return std::min(step, requests_[active.request].tokens() - active.done);
}

void Scheduler::advance(Active& active, std::int64_t count, Call& call) const {
  call.segments.push_back({.request = active.request,
                           .first_token = active.done,
                           .count = count,
                           .slot = active.slot,
                           .read_slot = std::exchange(active.read_slot, active.slot),
                           .resumed = active.done > 0,
                           .finishes = active.done + count == requests_[active.request].tokens()});
  active.done += count;
}

// All rows of the tree go through the layers, whether or not the request has so many tokens left:
// an engine does not know yet where it ends.
void Scheduler::verify_step(Active& active, Call& call) {
  const std::int64_t left = requests_[active.request].tokens() - active.done;
  Segment drafts{.request = active.request,
                 .first_token = active.done,
                 .count = options_.tree.rows(),
                 .slot = active.slot,
                 .read_slot = active.slot,
                 .resumed = true,
                 .accepted = options_.tree.accepted_rows(
                     options_.accept, left, hash_of(options_.seed, {active.request, active.done}))};
  call.segments.push_back(drafts);

  drafts.count = std::ssize(drafts.accepted);
  drafts.finishes = drafts.count == left;
  active.done += drafts.count;
  commit_.kind = CallKind::kCommit;
  commit_.tokens += drafts.count;
  commit_.advanced += drafts.count;
  commit_.segments.push_back(std::move(drafts));
}

bool Scheduler::admit() {
  if (waiting_ == std::ssize(requests_) || free_slots_.empty()) return false;
  const std::int32_t slot = free_slots_.back();
  free_slots_.pop_back();
  prefilling_ = Active{.request = waiting_++, .done = 0, .slot = slot, .read_slot = slot};
  if (options_.prefix_block > 0) find_prefix(*prefilling_);
  return true;
}

// At least one token of the prompt is left to compute: its output is what generation begins from.
void Scheduler::find_prefix(Active& active) {
  const Request& request = requests_[active.request];
  const std::int64_t most = std::min(request.shared_tokens, request.prompt_tokens - 1);
  for (std::int64_t tokens = most / options_.prefix_block * options_.prefix_block; tokens > 0;
       tokens -= options_.prefix_block) {
    const auto slot = cache_.find({first_with_prefix(requests_, active.request, tokens), tokens});
    if (!slot) continue;
    active.done = tokens;
    active.read_slot = *slot;
    return;
  }
}

void Scheduler::take_snapshots(Segment& segment) {
  const std::int64_t block = options_.prefix_block;
  const std::int64_t end = segment.first_token + segment.count;
  for (std::int64_t blocks = segment.first_token / block + 1; blocks * block <= end; ++blocks) {
    const auto slot =
        cache_.add({first_with_prefix(requests_, segment.request, blocks * block), blocks * block});
    if (slot) segment.snapshots.push_back({.blocks = blocks, .slot = *slot});
  }
}

void Scheduler::add_prompts(std::int64_t budget, Call& call, std::vector<Active>& prefilled) {
  while (budget > 0 && (prefilling_ || admit())) {
    const std::int64_t prompt = requests_[prefilling_->request].prompt_tokens;
    const std::int64_t count = std::min(budget, prompt - prefilling_->done);
    advance(*prefilling_, count, call);
    if (options_.prefix_block > 0) take_snapshots(call.segments.back());
    budget -= count;
    if (prefilling_->done == prompt) {
      prefilled.push_back(*prefilling_);
      prefilling_.reset();
    }
  }
}

}  // namespace shortconv::tools
