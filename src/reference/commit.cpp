#include <cstring>

#include "reference/reference.hpp"
#include "reference/tensor_views.hpp"

namespace shortconv::reference {
namespace {

// Copies the state after the last accepted token to one slot, after all index values have been
// checked.
void commit_state(const CommitProblem& p, const CommitPointers& at, std::int64_t sequence,
                  std::int64_t slot) {
  if (is_padding(p, slot) || slot >= p.slot_count) return;
  std::int64_t begin = 0, end = p.tokens;
  if (p.query_start_loc.present) {
    begin = load_bound(p.query_start_loc, at.query_start_loc, sequence, p.tokens);
    end = load_bound(p.query_start_loc, at.query_start_loc, sequence + 1, p.tokens);
  }
  const std::int64_t accepted = load_entry(p.accepted, at.accepted, sequence);
  if (accepted < 0 || accepted >= end - begin) return;
  const auto& states = p.intermediate_states;
  const std::int64_t bytes = element_bytes(p.state.dtype);
  for (std::int64_t layer = 0; layer < p.layers; ++layer) {
    for (std::int64_t row = 0; row < p.width - 1; ++row) {
      for (std::int64_t channel = 0; channel < p.channels; ++channel) {
        const std::int64_t from = layer * states.layer_stride + sequence * states.sequence_stride +
                                  (begin + accepted) * states.token_stride +
                                  row * states.column_stride + channel * states.channel_stride;
        const std::int64_t to = layer * p.state.layer_stride + slot * p.state.slot_stride +
                                (p.base_column + row) * p.state.column_stride +
                                channel * p.state.channel_stride;
        std::memcpy(static_cast<char*>(at.state) + to * bytes,
                    static_cast<const char*>(at.intermediate_states) + from * bytes,
                    static_cast<std::size_t>(bytes));
      }
    }
  }
}

}  // namespace

Status commit(const CommitProblem& p, const PlanStorage&, const CommitPointers& at, void*) {
  for (std::int64_t s = 0; s < p.sequences; ++s) {
    commit_state(p, at, s, load_entry(p.slots, at.slots, s, s));
    commit_state(p, at, s, load_entry(p.second_slots, at.second_slots, s, -1));
  }
  return {};
}

}  // namespace shortconv::reference
