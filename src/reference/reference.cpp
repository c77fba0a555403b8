// The specification in fp64, written to be read: one sequence, one channel, one token at a time.
// Every other backend is tested against it, so it shares no code with them beyond conversions of
// single elements.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/backend.hpp"
#include "core/element.hpp"
#include "reference/prepare.hpp"
#include "shortconv/violation.hpp"

namespace shortconv {
namespace {

struct Call {
  const Problem& p;
  const Addresses& at;

  const char* element(const void* base, DType dtype, std::int64_t offset) const {
    return static_cast<const char*>(base) + offset * element_bytes(dtype);
  }
  // Row r of a dense batch is token r % L of sequence r / L; packed rows have one stride.
  std::int64_t row_offset(std::int64_t row, std::int64_t sequence_stride,
                          std::int64_t token_stride) const {
    if (p.has_query_start_loc) return row * token_stride;
    return row / p.sequence_tokens * sequence_stride + row % p.sequence_tokens * token_stride;
  }
  const char* x(std::int64_t row, std::int64_t channel) const {
    return element(at.x, p.x_dtype,
                   row_offset(row, p.x_sequence, p.x_token) + channel * p.x_channel);
  }
  const char* input_gate(std::int64_t row, std::int64_t channel) const {
    return element(at.input_gate, p.x_dtype,
                   row_offset(row, p.input_gate_sequence, p.input_gate_token) +
                       channel * p.input_gate_channel);
  }
  const char* output_gate(std::int64_t row, std::int64_t channel) const {
    return element(at.output_gate, p.x_dtype,
                   row_offset(row, p.output_gate_sequence, p.output_gate_token) +
                       channel * p.output_gate_channel);
  }
  char* out(std::int64_t row, std::int64_t channel) const {
    return const_cast<char*>(
        element(at.out, p.out_dtype,
                row_offset(row, p.out_sequence, p.out_token) + channel * p.out_channel));
  }
  char* state(std::int64_t slot, std::int64_t column, std::int64_t channel) const {
    return const_cast<char*>(
        element(at.state, p.state_dtype,
                slot * p.state_slot + column * p.state_column + channel * p.state_channel));
  }
  char* window(std::int64_t sequence, std::int64_t row, std::int64_t token, std::int64_t column,
               std::int64_t channel) const {
    const std::int64_t first =
        p.has_window_slots      ? window_slot(sequence) * p.window_sequence + token * p.window_token
        : p.has_query_start_loc ? row * p.window_token
                                : sequence * p.window_sequence + token * p.window_token;
    return const_cast<char*>(element(
        at.windows, p.state_dtype, first + column * p.window_column + channel * p.window_channel));
  }
  std::int64_t window_slot(std::int64_t sequence) const {
    return load_index(p.window_slots_dtype, at.window_slots, sequence * p.window_slots_stride);
  }
  bool is_captured(std::int64_t sequence, std::int64_t token) const {
    if (!p.has_windows || !p.has_window_slots) return p.has_windows;
    const std::int64_t slot = window_slot(sequence);
    const bool none = slot < 0 || (p.has_null_slot && slot == p.null_slot);
    return !none && slot < p.window_slots && token < p.window_tokens;
  }
  std::int64_t parent(std::int64_t sequence, std::int64_t row, std::int64_t token) const {
    const std::int64_t index = p.has_query_start_loc
                                   ? row * p.parents_token
                                   : sequence * p.parents_sequence + token * p.parents_token;
    return load_index(p.parents_dtype, at.parents, index);
  }
  // The draft token before a token, -1 for the newest input of the history, and so on downwards.
  std::int64_t before(std::int64_t sequence, std::int64_t row, std::int64_t token) const {
    if (!p.has_parents || token <= 0) return token - 1;
    const std::int64_t parent = this->parent(sequence, row, token);
    return parent >= 0 && parent < token ? parent : -1;
  }
  double weight(std::int64_t channel, std::int64_t tap) const {
    return load_element(p.weight_dtype, element(at.weight, p.weight_dtype,
                                                channel * p.weight_channel + tap * p.weight_tap));
  }
  double bias(std::int64_t channel) const {
    if (!p.has_bias) return 0;
    return load_element(p.weight_dtype, element(at.bias, p.weight_dtype, channel * p.bias_channel));
  }
  std::int64_t bound(std::int64_t sequence) const {
    if (!p.has_query_start_loc) return sequence * p.sequence_tokens;
    return std::clamp<std::int64_t>(load_index(p.query_start_loc_dtype, at.query_start_loc,
                                               sequence * p.query_start_loc_stride),
                                    0, p.tokens);
  }
  std::int64_t number(std::int64_t row) const {
    return load_index(p.seq_idx_dtype, at.seq_idx,
                      row_offset(row, p.seq_idx_sequence, p.seq_idx_token));
  }
  // Whether seq_idx divides the sequence between a token and the one before.
  bool divided(std::int64_t begin, std::int64_t token) const {
    return p.has_seq_idx && token > 0 && number(begin + token) != number(begin + token - 1);
  }
  bool is_padding(std::int64_t slot) const {
    return slot < 0 || (p.has_null_slot && slot == p.null_slot) || (p.has_state && slot >= p.slots);
  }
};

double activate(Activation activation, double a) {
  return activation == Activation::kSilu ? a / (1 + std::exp(-a)) : a;
}

// An input of the past, in the bits it has where it lies.
struct Raw {
  DType dtype = DType::kF64;
  char bytes[8] = {};
};

Raw raw(DType dtype, const void* address) {
  Raw value{.dtype = dtype};
  std::memcpy(value.bytes, address, static_cast<std::size_t>(element_bytes(dtype)));
  return value;
}

// The input of a row, in the type of x. The product of two elements is that of their type in
// PyTorch: in fp32, then rounded.
Raw input(const Call& call, std::int64_t row, std::int64_t channel) {
  const DType dtype = call.p.x_dtype;
  if (!call.p.has_input_gate) return raw(dtype, call.x(row, channel));
  const double product = load_element(dtype, call.x(row, channel)) *
                         load_element(dtype, call.input_gate(row, channel));
  Raw value{.dtype = dtype};
  store_element(dtype, value.bytes, dtype == DType::kF64 ? product : static_cast<float>(product));
  return value;
}

void store_raw(const Raw& value, DType dtype, char* address) {
  if (value.dtype == dtype) {
    std::memcpy(address, value.bytes, static_cast<std::size_t>(element_bytes(dtype)));
  } else {
    store_element(dtype, address, load_element(value.dtype, value.bytes));
  }
}

void padded_row(const Call& call, std::int64_t row) {
  for (std::int64_t channel = 0; channel < call.p.channels; ++channel) {
    if (call.p.padded_rows == PaddedRows::kZero) {
      store_element(call.p.out_dtype, call.out(row, channel), 0);
    } else if (call.p.padded_rows == PaddedRows::kCopy) {
      store_raw(raw(call.p.x_dtype, call.x(row, channel)), call.p.out_dtype,
                call.out(row, channel));
    }
  }
}

void convolve_sequence(const Call& call, std::int64_t sequence, std::int64_t begin,
                       std::int64_t end) {
  const Problem& p = call.p;
  const auto index = [&](bool present, DType dtype, const void* base, std::int64_t stride,
                         std::int64_t otherwise) {
    return present ? load_index(dtype, base, sequence * stride) : otherwise;
  };
  const std::int64_t read_slot = index(p.has_read_slots, p.read_slots_dtype, call.at.read_slots,
                                       p.read_slots_stride, sequence);
  if (call.is_padding(read_slot)) {
    for (std::int64_t row = begin; row < end; ++row) padded_row(call, row);
    return;
  }
  const std::int64_t write_slot = index(p.has_write_slots, p.write_slots_dtype, call.at.write_slots,
                                        p.write_slots_stride, read_slot);
  const std::int64_t offset = index(p.has_read_offsets, p.read_offsets_dtype, call.at.read_offsets,
                                    p.read_offsets_stride, 0);
  const auto* flags = static_cast<const unsigned char*>(call.at.has_initial_state);
  const bool resumed =
      p.initial_state == InitialState::kAll ||
      (p.initial_state == InitialState::kByFlag && flags[sequence * p.flags_stride] != 0);

  const int history = (p.width - 1) * p.dilation;
  const std::int64_t tokens = end - begin;
  const std::int64_t oldest =
      p.state_base + std::clamp<std::int64_t>(offset, 0, p.state_columns - history - p.state_base);
  const std::int64_t position =
      std::max<std::int64_t>(index(p.has_ring_positions, p.ring_positions_dtype,
                                   call.at.ring_positions, p.ring_positions_stride, 0),
                             0);
  // The ring's column of an input, counted from the oldest of the history. The position first: what
  // is added to one near 2^63 would be too much.
  const auto ring_column = [&](std::int64_t number) {
    const std::int64_t columns = p.state_columns;
    return (position % columns + columns - history + number) % columns;
  };
  for (std::int64_t row = begin; p.has_seq_idx && row < end; ++row) {
    if (call.number(row) < 0) padded_row(call, row);
  }
  std::vector<Raw> inputs(static_cast<std::size_t>(history + tokens));
  std::vector<double> values(inputs.size());
  std::vector<Raw> older(static_cast<std::size_t>(p.older_columns));  // than the history
  for (std::int64_t channel = 0; channel < p.channels; ++channel) {
    for (std::int64_t column = 0; column < p.older_columns; ++column) {
      older[column] = resumed ? raw(p.state_dtype, call.state(read_slot, column, channel)) : Raw{};
    }
    for (int column = 0; column < history; ++column) {
      const std::int64_t from = p.has_ring_positions ? ring_column(column) : oldest + column;
      inputs[column] = resumed ? raw(p.state_dtype, call.state(read_slot, from, channel)) : Raw{};
    }
    for (std::int64_t t = 0; t < tokens; ++t) {
      inputs[history + t] = input(call, begin + t, channel);
    }
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      values[i] = load_element(inputs[i].dtype, inputs[i].bytes);
    }
    std::int64_t first = -history;  // input that tokens may see
    for (std::int64_t t = 0; t < tokens; ++t) {
      if (call.divided(begin, t)) first = t;
      if (p.has_seq_idx && call.number(begin + t) < 0) continue;
      // Where the token and the history before it are, the newest last.
      std::vector<std::int64_t> line(static_cast<std::size_t>(history + 1));
      std::int64_t ancestor = t;
      for (int place = history; place >= 0; --place) {
        line[place] = history + ancestor;
        ancestor = call.before(sequence, begin + ancestor, ancestor);
      }
      double a = call.bias(channel);
      for (int tap = 0; tap < p.width; ++tap) {
        const std::int64_t from = line[tap * p.dilation];
        a += call.weight(channel, tap) * (from < history + first ? 0 : values[from]);
      }
      double y = activate(p.activation, a);
      if (p.epilogue == Epilogue::kResidual) y += values[history + t];
      if (p.epilogue == Epilogue::kOutputGate) {
        y *= load_element(p.x_dtype, call.output_gate(begin + t, channel));
      }
      store_element(p.out_dtype, call.out(begin + t, channel), y);
      for (int column = 0; call.is_captured(sequence, t) && column < history; ++column) {
        store_raw(inputs[line[column + 1]], p.state_dtype,
                  call.window(sequence, begin + t, t, column, channel));
      }
    }
    for (std::int64_t i = 0; i < p.snapshots; ++i) {
      const auto entry = [&](std::int64_t column) {
        return load_index(p.snapshots_dtype, call.at.snapshots,
                          i * p.snapshots_row + column * p.snapshots_column);
      };
      const std::int64_t token = entry(1), slot = entry(2);
      if (entry(0) != sequence || token < 0 || token > tokens || call.is_padding(slot)) continue;
      if (p.keeps_state && slot == write_slot) continue;  // the final state's
      for (int column = 0; column < history; ++column) {
        const std::int64_t to =
            p.has_ring_positions ? ring_column(token + column) : p.state_base + column;
        store_raw(inputs[token + column], p.state_dtype, call.state(slot, to, channel));
      }
    }
    if (!p.keeps_state || call.is_padding(write_slot)) continue;
    if (p.has_ring_positions) {
      const bool has_history = resumed && read_slot == write_slot;
      for (std::int64_t number = 0; number < history + tokens; ++number) {
        const bool newer_in_its_place = number + p.state_columns < history + tokens;
        const std::int64_t first = has_history           ? history
                                   : p.op == Op::kVerify ? 0  // none of the drafts may stay
                                                         : std::min<std::int64_t>(tokens, history);
        const bool needed = number >= first;
        if (newer_in_its_place || !needed) continue;
        store_raw(inputs[number], p.state_dtype,
                  call.state(write_slot, ring_column(number), channel));
      }
      continue;
    }
    for (std::int64_t column = -p.older_columns; column < history; ++column) {
      const std::int64_t number = tokens + column;
      store_raw(number < 0 ? older[p.older_columns + number] : inputs[number], p.state_dtype,
                call.state(write_slot, p.state_base + column, channel));
    }
  }
}

// The checked mode: each rule on its own, over the values as they stand.
void report_violations(const Call& call) {
  const Problem& p = call.p;
  const Addresses& at = call.at;
  const auto set = [&](Violation violation, int column, std::int64_t value) {
    const std::int64_t offset =
        static_cast<std::int64_t>(violation) * p.violations_row + column * p.violations_column;
    std::memcpy(const_cast<char*>(call.element(at.violations, DType::kI64, offset)), &value,
                sizeof value);
  };
  // `last`: one past the highest number that the rule is about.
  const auto report = [&](Violation violation, std::int64_t last, auto&& violates) {
    std::int64_t count = 0, first = -1;
    for (std::int64_t number = 0; number < last; ++number) {
      if (!violates(number)) continue;
      if (count++ == 0) first = number;
    }
    set(violation, kViolationCount, count);
    set(violation, kViolationFirst, first);
  };
  const auto entry = [&](std::int64_t i) {
    return load_index(p.query_start_loc_dtype, at.query_start_loc, i * p.query_start_loc_stride);
  };
  const auto read_slot = [&](std::int64_t s) {
    return p.has_read_slots ? load_index(p.read_slots_dtype, at.read_slots, s * p.read_slots_stride)
                            : s;
  };
  const auto write_slot = [&](std::int64_t s) {
    return p.has_write_slots
               ? load_index(p.write_slots_dtype, at.write_slots, s * p.write_slots_stride)
               : read_slot(s);
  };
  const auto outside = [&](std::int64_t slot) {
    return p.has_state && slot >= p.slots && !(p.has_null_slot && slot == p.null_slot);
  };
  const auto works = [&](std::int64_t s) {  // has tokens and is not padding
    return p.has_state && call.bound(s) < call.bound(s + 1) && !call.is_padding(read_slot(s));
  };
  const auto writes = [&](std::int64_t s) {
    return p.keeps_state && works(s) && !call.is_padding(write_slot(s));
  };
  const auto resumed = [&](std::int64_t s) {
    return p.initial_state == InitialState::kAll ||
           (p.initial_state == InitialState::kByFlag &&
            static_cast<const unsigned char*>(at.has_initial_state)[s * p.flags_stride] != 0);
  };

  const std::int64_t entries = p.has_query_start_loc ? p.sequences + 1 : 0;
  report(Violation::kBoundOutside, entries,
         [&](std::int64_t i) { return entry(i) < 0 || entry(i) > p.tokens; });
  report(Violation::kBoundsDecrease, entries,
         [&](std::int64_t i) { return i > 0 && entry(i) < entry(i - 1); });
  report(Violation::kReadSlotOutside, p.sequences,
         [&](std::int64_t s) { return outside(read_slot(s)); });
  report(Violation::kWriteSlotOutside, p.sequences,
         [&](std::int64_t s) { return !call.is_padding(read_slot(s)) && outside(write_slot(s)); });
  report(Violation::kWriteSlotShared, p.sequences, [&](std::int64_t s) {
    if (!writes(s)) return false;
    for (std::int64_t earlier = 0; earlier < s; ++earlier) {
      if (writes(earlier) && write_slot(earlier) == write_slot(s)) return true;
    }
    return false;
  });
  report(Violation::kReadOffsetOutside, p.sequences, [&](std::int64_t s) {
    if (!p.has_read_offsets || !works(s) || !resumed(s)) return false;
    const std::int64_t offset =
        load_index(p.read_offsets_dtype, at.read_offsets, s * p.read_offsets_stride);
    return offset < 0 || offset > p.state_columns - (p.width - 1) * p.dilation - p.state_base;
  });
  report(Violation::kParentNotBefore, p.sequences, [&](std::int64_t s) {
    if (!p.has_parents || !works(s)) return false;
    for (std::int64_t token = 0; token < call.bound(s + 1) - call.bound(s); ++token) {
      const std::int64_t parent = call.parent(s, call.bound(s) + token, token);
      if (parent < -1 || parent >= token) return true;
    }
    return false;
  });

  const auto snapshot = [&](std::int64_t row, std::int64_t column) {
    return load_index(p.snapshots_dtype, at.snapshots,
                      row * p.snapshots_row + column * p.snapshots_column);
  };
  const auto names_token = [&](std::int64_t row) {
    const std::int64_t s = snapshot(row, 0), token = snapshot(row, 1);
    return s >= 0 && s < p.sequences && works(s) && token >= 0 &&
           token <= call.bound(s + 1) - call.bound(s);
  };
  const auto is_written = [&](std::int64_t row) {  // and not by the final state anyway
    if (!names_token(row) || call.is_padding(snapshot(row, 2))) return false;
    const std::int64_t s = snapshot(row, 0);
    return !(writes(s) && snapshot(row, 2) == write_slot(s));
  };
  report(Violation::kSnapshotSlotOutside, p.snapshots,
         [&](std::int64_t row) { return names_token(row) && outside(snapshot(row, 2)); });
  report(Violation::kSnapshotSlotShared, p.snapshots, [&](std::int64_t row) {
    for (std::int64_t earlier = 0; is_written(row) && earlier < row; ++earlier) {
      if (is_written(earlier) && snapshot(earlier, 2) == snapshot(row, 2)) return true;
    }
    return false;
  });
  const std::int64_t window_sequences = p.has_window_slots ? p.sequences : 0;
  report(Violation::kWindowSlotOutside, window_sequences, [&](std::int64_t s) {
    const std::int64_t slot = call.window_slot(s);
    return !call.is_padding(read_slot(s)) && slot >= p.window_slots &&
           !(p.has_null_slot && slot == p.null_slot);
  });
  report(Violation::kWindowSlotShared, window_sequences, [&](std::int64_t s) {
    const auto captured = [&](std::int64_t s) { return works(s) && call.is_captured(s, 0); };
    for (std::int64_t earlier = 0; captured(s) && earlier < s; ++earlier) {
      if (captured(earlier) && call.window_slot(earlier) == call.window_slot(s)) return true;
    }
    return false;
  });
}

Status run_reference(const Problem& p, const PlanStorage&, const Addresses& at, void*) {
  if (p.has_violations) report_violations({p, at});
  if (p.tokens == 0 || p.channels == 0) return {};  // however many sequences or rows of nothing
  const Call call{p, at};
  std::int64_t row = 0;
  for (std::int64_t sequence = 0; sequence < p.sequences; ++sequence) {
    const std::int64_t begin = call.bound(sequence);
    const std::int64_t end = call.bound(sequence + 1);
    for (; row < begin; ++row) padded_row(call, row);
    if (end > begin) convolve_sequence(call, sequence, begin, end);
    row = std::max(row, end);
  }
  for (; row < p.tokens; ++row) padded_row(call, row);
  return {};
}

// Element by element to one of the two sets of slots, where there is one; no address before every
// number is known to be good.
void commit_window(const CommitProblem& p, const CommitAddresses& at, std::int64_t sequence,
                   std::int64_t slot) {
  if (slot < 0 || slot >= p.slots || (p.has_null_slot && slot == p.null_slot)) return;
  std::int64_t begin = 0, end = p.tokens;
  if (p.has_query_start_loc) {
    const auto bound = [&](std::int64_t index) {
      return std::clamp<std::int64_t>(
          load_index(p.query_start_loc_dtype, at.query_start_loc, index * p.query_start_loc_stride),
          0, p.tokens);
    };
    begin = bound(sequence);
    end = bound(sequence + 1);
  }
  const std::int64_t accepted =
      load_index(p.accepted_dtype, at.accepted, sequence * p.accepted_stride);
  if (accepted < 0 || accepted >= end - begin) return;
  const std::int64_t bytes = element_bytes(p.dtype);
  for (std::int64_t layer = 0; layer < p.layers; ++layer) {
    for (std::int64_t row = 0; row < p.width - 1; ++row) {
      for (std::int64_t channel = 0; channel < p.channels; ++channel) {
        const std::int64_t from = layer * p.windows_layer + sequence * p.windows_sequence +
                                  (begin + accepted) * p.windows_token + row * p.windows_row +
                                  channel * p.windows_channel;
        const std::int64_t to = layer * p.state_layer + slot * p.state_slot +
                                (p.state_base + row) * p.state_column + channel * p.state_channel;
        std::memcpy(static_cast<char*>(at.state) + to * bytes,
                    static_cast<const char*>(at.windows) + from * bytes,
                    static_cast<std::size_t>(bytes));
      }
    }
  }
}

Status commit_reference(const CommitProblem& p, const PlanStorage&, const CommitAddresses& at,
                        void*) {
  for (std::int64_t s = 0; s < p.sequences; ++s) {
    commit_window(p, at, s,
                  p.has_slots ? load_index(p.slots_dtype, at.slots, s * p.slots_stride) : s);
    if (!p.has_second_slots) continue;
    commit_window(p, at, s,
                  load_index(p.second_slots_dtype, at.second_slots, s * p.second_slots_stride));
  }
  return {};
}

BackendInfo reference_info() {
  return {"reference", true, "fp64, one thread, for comparison only"};
}

}  // namespace

extern const Backend kReferenceBackend{
    .id = BackendId::kReference,
    .device = DeviceType::kCpu,
    .info = reference_info,
    .plan = [](const Problem&, PlanStorage&) { return Status(); },
    .run = run_reference,
    .describe = [](const Problem&, const PlanStorage&) { return std::string("fp64"); },
    .plan_commit = [](const CommitProblem&, PlanStorage&) { return Status(); },
    .run_commit = commit_reference,
    .block_snapshots = reference::block_snapshots,
    .tree_parents = reference::tree_parents,
};

}  // namespace shortconv
