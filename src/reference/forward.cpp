// Forward, decode and verify calls.
#include <cmath>
#include <cstring>
#include <vector>

#include "reference/reference.hpp"
#include "reference/tensor_views.hpp"

namespace shortconv::reference {
namespace {

double activate(Activation activation, double a) {
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kSilu:
      return a / (1 + std::exp(-a));
  }
  return a;
}

double finish(Epilogue epilogue, double activated, double input, double gate) {
  switch (epilogue) {
    case Epilogue::kNone:
      break;
    case Epilogue::kResidual:
      return activated + input;
    case Epilogue::kOutputGate:
      return activated * gate;
  }
  return activated;
}

/// An element with the bits that it has in memory. The default is zero.
struct Raw {
  DType dtype = DType::kF64;
  char bytes[8] = {};
};

Raw load_raw(DType dtype, const void* address) {
  Raw value{.dtype = dtype};
  std::memcpy(value.bytes, address, static_cast<std::size_t>(element_bytes(dtype)));
  return value;
}

void store_raw(const Raw& value, DType dtype, char* address) {
  if (value.dtype == dtype) {
    std::memcpy(address, value.bytes, static_cast<std::size_t>(element_bytes(dtype)));
  } else {
    store_element(dtype, address, load_element(value.dtype, value.bytes));
  }
}

/// The input of a row, with the dtype of x. A gated or scaled input is PyTorch's product: in fp32,
/// then rounded to the dtype.
Raw load_input(const TensorViews& view, std::int64_t row, std::int64_t channel) {
  const DType dtype = view.p.x.dtype;
  double factor = view.input_scale(channel);
  if (!view.p.input_gate.present && factor == 1) return load_raw(dtype, view.x(row, channel));
  if (view.p.input_gate.present) {
    factor =
        load_element(dtype, view.row_element(view.p.input_gate, view.at.input_gate, row, channel));
  }
  const double product = load_element(dtype, view.x(row, channel)) * factor;
  Raw value{.dtype = dtype};
  store_element(dtype, value.bytes, dtype == DType::kF64 ? product : static_cast<float>(product));
  return value;
}

void pad_row(const TensorViews& view, std::int64_t row) {
  const Problem& p = view.p;
  for (std::int64_t channel = 0; channel < p.channels; ++channel) {
    switch (p.padded_rows) {
      case PaddedRows::kZero:
        store_element(p.out.dtype, view.out(row, channel), 0);
        break;
      case PaddedRows::kUntouched:
        break;
      case PaddedRows::kCopy:
        store_raw(load_raw(p.x.dtype, view.x(row, channel)), p.out.dtype, view.out(row, channel));
        break;
    }
  }
}

/// One sequence that is not padding. Its inputs are numbered: the tokens of this call from 0, older
/// inputs below 0.
class SequenceForward : TensorViews {
 public:
  SequenceForward(const TensorViews& view, std::int64_t sequence)
      : TensorViews(view), sequence_(sequence) {}

  void run() {
    for (std::int64_t t = 0; p.seq_idx.present && t < tokens_; ++t) {
      if (seq_idx(begin_ + t) < 0) pad_row(*this, begin_ + t);
    }
    for (std::int64_t channel = 0; channel < p.channels; ++channel) {
      load_inputs(channel);
      convolve(channel);
      write_snapshots(channel);
      write_state(channel);
    }
  }

 private:
  Raw& input(std::int64_t n) { return inputs_[past_ + n]; }
  [[nodiscard]] double value(std::int64_t n) {
    return load_element(input(n).dtype, input(n).bytes);
  }

  /// Column of input n in a circular buffer. The modulo comes first: a cache_seqlen near 2^63
  /// leaves no room for additions.
  [[nodiscard]] std::int64_t circular_column(std::int64_t n) const {
    const std::int64_t seqlen =
        std::max<std::int64_t>(load_entry(p.cache_seqlens, at.cache_seqlens, sequence_), 0);
    return (seqlen % p.state_columns + p.state_columns + n) % p.state_columns;
  }
  [[nodiscard]] std::int64_t read_column(std::int64_t n) const {
    if (p.cache_seqlens.present) return circular_column(n);
    const std::int64_t offset = load_entry(p.read_offsets, at.read_offsets, sequence_);
    const std::int64_t last = p.state_columns - history_ - p.base_column;
    return p.base_column + std::clamp<std::int64_t>(offset, 0, last) + history_ + n;
  }
  /// Column of input n in a state whose newest input is `end` - 1.
  [[nodiscard]] std::int64_t written_column(std::int64_t n, std::int64_t end) const {
    if (p.cache_seqlens.present) return circular_column(n);
    return p.base_column + history_ - (end - n);
  }

  void load_inputs(std::int64_t channel) {
    for (std::int64_t n = -past_; n < 0; ++n) {
      input(n) =
          continues_ ? load_raw(p.state.dtype, state(read_slot_, read_column(n), channel)) : Raw{};
    }
    for (std::int64_t t = 0; t < tokens_; ++t) {
      input(t) = load_input(*this, begin_ + t, channel);
    }
  }

  void convolve(std::int64_t channel) {
    std::int64_t first = -history_;  // oldest input in the part of seq_idx
    for (std::int64_t t = 0; t < tokens_; ++t) {
      const std::int64_t row = begin_ + t;
      if (p.seq_idx.present) {
        if (t > 0 && seq_idx(row) != seq_idx(row - 1)) first = t;
        if (seq_idx(row) < 0) continue;
      }
      std::int64_t n = t;
      for (std::int64_t place = history_; place >= 0; --place) {
        window_[place] = n;
        n = before(begin_, n);
      }
      double a = bias(channel);
      for (int tap = 0; tap < p.width; ++tap) {
        const std::int64_t from = window_[tap * p.dilation];
        a += weight(channel, tap) * (from < first ? 0 : value(from));
      }
      const double gate =
          p.output_gate.present
              ? load_element(p.x.dtype, row_element(p.output_gate, at.output_gate, row, channel))
              : 0;
      store_element(p.out.dtype, out(row, channel),
                    finish(p.epilogue, activate(p.activation, a), value(t), gate));
      if (is_captured(sequence_, t)) write_intermediate_state(t, channel);
    }
  }

  /// The state after a token, from window_.
  void write_intermediate_state(std::int64_t token, std::int64_t channel) {
    const auto& states = p.intermediate_states;
    const std::int64_t first =
        p.intermediate_slots.present
            ? intermediate_slot(sequence_) * states.sequence_stride + token * states.token_stride
            : row_offset(states, begin_ + token);
    for (std::int64_t column = 0; column < history_; ++column) {
      const std::int64_t offset =
          first + column * states.column_stride + channel * states.channel_stride;
      store_raw(input(window_[column + 1]), p.state.dtype,
                element(states, at.intermediate_states, offset));
    }
  }

  void write_inputs(std::int64_t first, std::int64_t end, std::int64_t slot, std::int64_t channel) {
    for (std::int64_t n = first; n < end; ++n) {
      store_raw(input(n), p.state.dtype, state(slot, written_column(n, end), channel));
    }
  }

  void write_snapshots(std::int64_t channel) {
    for (std::int64_t row = 0; row < p.snapshot_count; ++row) {
      if (snapshot(row, 0) != sequence_) continue;
      const std::int64_t token = snapshot(row, 1), slot = snapshot(row, 2);
      if (token < 0 || token > tokens_ || !is_usable(slot)) continue;
      if (p.writes_state && slot == write_slot_) continue;  // the final state replaces it
      write_inputs(token - history_, token, slot, channel);
    }
  }

  void write_state(std::int64_t channel) {
    if (!p.writes_state || !is_usable(write_slot_)) return;
    std::int64_t first = tokens_ - past_;
    if (p.cache_seqlens.present) {
      if (continues_ && read_slot_ == write_slot_) {
        first = 0;  // the slot has the history already
      } else if (p.op == Op::kVerify) {
        first = -history_;  // the engine may accept no draft token
      } else {
        first = std::min<std::int64_t>(first, 0);
      }
      first = std::max(first, tokens_ - p.state_columns);  // one input per column
    }
    write_inputs(first, tokens_, write_slot_, channel);
  }

  const std::int64_t sequence_, begin_ = begin(sequence_), tokens_ = length(sequence_);
  const std::int64_t history_ = (p.width - 1) * p.dilation;
  const std::int64_t past_ = history_ + p.shifted_columns;  // all columns that shift
  const std::int64_t read_slot_ = read_slot(sequence_), write_slot_ = write_slot(sequence_);
  const bool continues_ = continues_from_state(sequence_);
  std::vector<Raw> inputs_ = std::vector<Raw>(past_ + tokens_);                 // from -past_ on
  std::vector<std::int64_t> window_ = std::vector<std::int64_t>(history_ + 1);  // of one token
};

}  // namespace

void forward_rows(const TensorViews& view, const std::function<void(std::int64_t)>& finish,
                  const std::function<void(std::int64_t)>& pad) {
  const Problem& p = view.p;
  if (p.tokens == 0) return;  // for any number of sequences
  const auto pad_rows = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      pad_row(view, row);
      pad(row);
    }
  };
  std::int64_t row = 0;
  for (std::int64_t sequence = 0; sequence < p.sequences; ++sequence) {
    const std::int64_t begin = view.begin(sequence), end = begin + view.length(sequence);
    pad_rows(row, begin);
    if (!view.is_usable(view.read_slot(sequence))) {
      pad_rows(begin, end);
    } else if (begin < end) {
      SequenceForward(view, sequence).run();
      for (std::int64_t done = begin; done < end; ++done) {
        const bool is_padding = p.seq_idx.present && view.seq_idx(done) < 0;
        (is_padding ? pad : finish)(done);
      }
    }
    row = std::max({row, begin, end});
  }
  pad_rows(row, p.tokens);
}

Status forward(const Problem& p, const PlanStorage&, const TensorPointers& at, void*) {
  if (p.violations.present) report_violations(p, at);
  const auto nothing = [](std::int64_t) {};
  if (p.channels > 0) forward_rows(TensorViews{p, at}, nothing, nothing);
  return {};
}

}  // namespace shortconv::reference
