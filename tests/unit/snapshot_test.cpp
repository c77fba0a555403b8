// Snapshots: states inside of a sequence, as the call passes by.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "call.hpp"
#include "common/random.hpp"
#include "core/capability.hpp"
#include "core/element.hpp"

namespace shortconv {
namespace {

using Rows = std::vector<std::int32_t>;  // sequence, token, slot; sequence, token, slot; ...

class Snapshots : public testing::TestWithParam<BackendId> {};
INSTANTIATE_TEST_SUITE_P(Backends, Snapshots,
                         testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

void take(Call& call, Rows& rows) {
  call.args.pool.snapshots = TensorRef::contiguous(rows.data(), DType::kI32,
                                                   {static_cast<std::int64_t>(rows.size()) / 3, 3});
}

Call snapshot_call(std::vector<std::int32_t> bounds, BackendId backend = BackendId::kAuto) {
  Call call(std::move(bounds));
  call.slots = 8;
  call.resize(call.tokens);
  call.args.options.backend = backend;
  return call;
}

// Tokens 0 to 2 reach back into the history, 4 is inside, 5 the end.
TEST_P(Snapshots, HoldTheInputsBeforeTheirToken) {
  for (const bool in_place : {false, true}) {
    Call call = snapshot_call({0, 5}, GetParam());
    call.flags = {1};
    Rows rows = {0, 4, 2, 0, 0, 1, 0, 1, 7, 0, 5, 4, 0, 2, 3};
    take(call, rows);
    Call old = call;
    ForwardArgs args = call.fill();
    if (in_place) args.out = args.x;
    ASSERT_TRUE(forward(args).ok());
    const auto input = [&](std::int64_t number, std::int64_t c) {
      return number < 0 ? old.state_at(0, 3 + number, c) : old.x_at(number, c);
    };
    for (std::size_t i = 0; i < rows.size(); i += 3) {
      for (int k = 0; k < 3; ++k) {
        for (std::int64_t c = 0; c < 3; ++c) {
          EXPECT_EQ(call.state_at(rows[i + 2], k, c), input(rows[i + 1] - 3 + k, c))
              << "token " << rows[i + 1] << ", column " << k;
        }
      }
    }
    for (std::int64_t c = 0; c < 3; ++c) {
      EXPECT_EQ(call.state_at(0, 2, c), old.x_at(4, c)) << "the final state";
      for (const int slot : {5, 6}) EXPECT_EQ(call.state_at(slot, 1, c), old.state_at(slot, 1, c));
    }
  }
}

TEST_P(Snapshots, OfASequenceThatBeginsReachBackIntoZeros) {
  Call call = snapshot_call({0, 2}, GetParam());
  Rows rows = {0, 0, 5, 0, 1, 6};
  take(call, rows);
  call.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    for (int k = 0; k < 3; ++k) EXPECT_EQ(call.state_at(5, k, c), 0.0f);
    EXPECT_EQ(call.state_at(6, 0, c), 0.0f);
    EXPECT_EQ(call.state_at(6, 1, c), 0.0f);
    EXPECT_EQ(call.state_at(6, 2, c), call.x_at(0, c));
  }
}

TEST_P(Snapshots, GoToTheBaseColumnsOrThoseOfTheCircularBuffer) {
  Call based = snapshot_call({0, 4}, GetParam());
  based.columns = 6;
  based.resize(4);
  based.args.pool.base_column = 2;
  Rows rows = {0, 3, 5};
  take(based, rows);
  Call ring = based;
  ring.args.pool.base_column = 0;
  Call old = based;
  based.run();
  std::int64_t position = 8;  // tokens 0, 1, 2 are in columns 2, 3, 4
  ring.args.pool.cache_seqlens = TensorRef::contiguous(&position, DType::kI64, {1});
  ring.run();
  for (std::int64_t c = 0; c < 3; ++c) {
    for (int column = 0; column < 6; ++column) {
      const bool kept = column >= 2 && column < 5;
      const float expected = kept ? old.x_at(column - 2, c) : old.state_at(5, column, c);
      EXPECT_EQ(based.state_at(5, column, c), expected) << column;
      EXPECT_EQ(ring.state_at(5, column, c), expected) << column;
    }
  }
}

TEST_P(Snapshots, RowsThatNameNothingAreIgnored) {
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  // Sequence 1 is padding, 2 has no tokens, 6 is the null slot.
  Rows rows = {-1, 0, 5, 4,  0, 5, kMost, 0, 5, 0,     -1, 5, 0,      4, 5, 0, kMost,
               5,  0, 2, -1, 0, 2, 8,     0, 2, kMost, 0,  2, 6,      1, 0, 5, 1,
               1,  5, 2, 0,  5, 3, 2,     5, 3, -1,    5,  0, -kMost, 5, 0, 2, -kMost};
  Call call = snapshot_call({0, 3, 5, 5, 6}, GetParam());
  call.read_slots = {0, -1, 1, 2};
  call.flags = {1, 1, 1, 0};
  call.args.pool.null_slot = 6;
  Call without = call;
  without.run();
  take(call, rows);
  call.run();
  EXPECT_EQ(call.state, without.state);
  EXPECT_EQ(call.out, without.out);
}

TEST_P(Snapshots, OfTheFinalStateMayNameItsOwnSlot) {
  for (const std::int32_t length : {1, 5}) {  // the shorter one reads what it writes
    Call call = snapshot_call({0, length}, GetParam());
    call.flags = {1};
    Call without = call;
    without.run();
    Rows rows = {0, length, 0};
    take(call, rows);
    call.run();
    EXPECT_EQ(call.state, without.state);
    EXPECT_EQ(call.out, without.out);
  }
}

// A running state that lives in the slot of its block: what remains there is the final state.
TEST_P(Snapshots, InTheSlotOfTheFinalStateAreNotTaken) {
  for (const bool ring : {false, true}) {
    for (const std::int32_t write : {0, 4}) {
      for (const std::int32_t length : {1, 2, 5, 20}) {
        for (std::int32_t token = 0; token <= length; ++token) {
          Call call = snapshot_call({0, length}, GetParam());
          call.columns = ring ? 7 : 3;
          call.resize(length);
          call.flags = {1};
          call.write_slots = {write};
          std::int64_t position = 4;
          if (ring) {
            call.args.pool.cache_seqlens = TensorRef::contiguous(&position, DType::kI64, {1});
          }
          Call without = call;
          without.run();
          Rows rows = {0, token, write, 0, 0, 6};  // and one that needs the history
          take(call, rows);
          call.run();
          EXPECT_EQ(call.out, without.out);
          for (std::int64_t slot = 0; slot < 6; ++slot) {
            for (std::int64_t column = 0; column < call.columns; ++column) {
              EXPECT_EQ(call.state_at(slot, column, 1), without.state_at(slot, column, 1))
                  << "slot " << slot << ", token " << token << " of " << length;
            }
          }
        }
      }
    }
  }
}

// Blocks of a prefix cache that hold the running state: a block that is full at last keeps the
// state at its end, in the slot which the call begins from.
TEST_P(Snapshots, MayReplaceTheHistoryThatTheirSequenceBeginsFrom) {
  for (const bool ring : {false, true}) {
    for (const bool in_place : {false, true}) {
      for (const std::int32_t length : {1, 2, 5, 20}) {
        for (std::int32_t token = 0; token <= length; ++token) {
          Call call = snapshot_call({0, length, length + 3}, GetParam());
          call.columns = ring ? 7 : 5;
          call.resize(length + 3);
          call.flags = {1, 1};
          call.read_slots = {0, 1};
          call.write_slots = {2, 1};
          std::vector<std::int64_t> positions = {4, 9};
          if (ring) {
            call.args.pool.cache_seqlens =
                TensorRef::contiguous(positions.data(), DType::kI64, {2});
          } else {
            call.read_offsets = {1, 0};
            call.args.pool.base_column = 1;
          }
          Rows elsewhere = {0, token, 5, 0, 0, 6, 1, 1, 7}, in_place_of_it = elsewhere;
          in_place_of_it[2] = 0;
          const auto run = [&](Call& one, Rows& rows) {
            take(one, rows);
            ForwardArgs args = one.fill();
            if (in_place) args.out = args.x;
            const Status status = forward(args);
            ASSERT_TRUE(status.ok()) << status.message();
          };
          Call other = call;
          run(other, elsewhere);
          run(call, in_place_of_it);
          EXPECT_EQ(call.out, other.out);
          EXPECT_EQ(call.x, other.x);
          for (std::int64_t slot = 0; slot < 8; ++slot) {
            for (std::int64_t column = 0; column < call.columns; ++column) {
              // Of a ring the columns of the snapshot; an ordered slot keeps the others too.
              const std::int64_t newest = (4 + token + 6) % 7;
              const bool of_it = ring ? (newest - column + 7) % 7 < 3 : column >= 1 && column < 4;
              if (slot == 5 || (slot == 0 && !of_it)) continue;
              EXPECT_EQ(call.state_at(slot, column, 1),
                        other.state_at(slot == 0 ? 5 : slot, column, 1))
                  << "slot " << slot << ", column " << column << ", token " << token << " of "
                  << length;
            }
          }
        }
      }
    }
  }
}

TEST_P(Snapshots, AreTakenOfDecodes) {
  Call call = snapshot_call({0, 1, 2}, GetParam());
  Rows rows = {1, 0, 5, 0, 1, 6};
  take(call, rows);
  ForwardArgs args = call.fill();
  args.op = Op::kDecode;
  args.sequences.query_start_loc.reset();
  args.out = args.x;
  Call old = call;
  ASSERT_TRUE(forward(args).ok());
  for (std::int64_t c = 0; c < 3; ++c) {
    for (int k = 0; k < 3; ++k) EXPECT_EQ(call.state_at(5, k, c), old.state_at(1, k, c));
    EXPECT_EQ(call.state_at(6, 1, c), old.state_at(0, 2, c));
    EXPECT_EQ(call.state_at(6, 2, c), old.x_at(0, c));
  }
}

TEST(SnapshotsRefusal, NeedAStateForwardOrDecodeAndScheduleFlat) {
  Rows rows = {0, 1, 2};
  const auto refusal_of = [&](auto&& change) {
    Call call = snapshot_call({0, 3});
    take(call, rows);
    change(call);
    return call.refusal();
  };
  EXPECT_EQ(refusal_of([](Call& call) { call.state.clear(); }),
            "state: is absent, but snapshots are written to it");
  EXPECT_EQ(refusal_of([](Call& call) { call.args.op = Op::kVerify; }),
            "snapshots: are supported by forward and decode; expected intermediate_states in a "
            "verify call");
  EXPECT_EQ(refusal_of([](Call& call) {
              call.args.options.schedule = Schedule::kSequenceGrid;
              call.args.options.max_seqlen = 3;
            }),
            "schedule: is sequence-grid; only flat is supported with snapshots");
  EXPECT_EQ(refusal_of([](Call& call) { call.args.pool.snapshots->shape[1] = 2; }),
            "snapshots: axis 1 ('sequence, token, slot') is 2, but the library made 'sequence, "
            "token, slot' = 3");
  EXPECT_EQ(refusal_of([](Call& call) { call.args.pool.snapshots->dtype = DType::kF32; }),
            "snapshots: dtype f32 is not supported (i32, i64)");
  EXPECT_EQ(refusal_of([](Call& call) {
              call.args.pool.snapshots->shape[0] = std::int64_t{1} << 40;
              call.args.pool.snapshots->strides[0] = 0;
            }),
            "snapshots: has 1099511627776 rows; expected fewer than 2^31");
}

TEST(SnapshotsRefusal, AddressesThatAreMissing) {
  Rows rows = {0, 1, 2};
  Call call = snapshot_call({0, 3});
  take(call, rows);
  Problem problem;
  ASSERT_TRUE(make_problem(call.fill(), problem).ok());
  Plan plan;
  ASSERT_TRUE(make_plan(problem, plan).ok());
  TensorPointers at = pointers(call.args);
  at.snapshots = nullptr;
  EXPECT_EQ(run(plan, at).message(), "snapshots: is null, but the plan has it");
  call.args.pool.snapshots = TensorRef::contiguous(nullptr, DType::kI32, {0, 3});
  EXPECT_TRUE(forward(call.args).ok());
}

// Random ragged calls over ordered pools and circular buffers, in all types and layouts. A snapshot
// is the final state of its sequence cut there; nothing else about the call may change.
class RandomSnapshots {
 public:
  RandomSnapshots(BackendId backend, int width, DType dtype, std::uint32_t seed)
      : backend_(backend), width_(width), dtype_(dtype), random_(seed) {}

  void check() {
    pick();
    std::vector<char> with_out = run(state_, true), with_state = after_;
    const std::vector<char> out = run(state_, false);
    ASSERT_EQ(with_out, out) << "outputs";
    std::vector<char> expected = after_;
    const auto same = [&](const std::vector<char>& pool, std::int64_t slot) {
      std::memcpy(expected.data() + slot * slot_bytes(), pool.data() + slot * slot_bytes(),
                  static_cast<std::size_t>(slot_bytes()));
    };
    for (std::size_t i = 0; i < rows_.size(); i += 3) {
      const std::int64_t s = rows_[i], token = rows_[i + 1], slot = rows_[i + 2];
      const bool live = s >= 0 && s < sequences() && slots_[s] >= 0 && length(s) > 0;
      if (!live || token < 0 || token > length(s) || slot < 0) continue;
      for (int k = 0; k < width_ - 1; ++k) keep(expected, s, token - (width_ - 1) + k, token, slot);
      if (token == 0 || circular_) continue;
      // The same by a call of the library.
      std::vector<char> pool = state_;
      cut(s, token, slot, pool);
      ASSERT_EQ(
          0, std::memcmp(pool.data() + slot * slot_bytes(), expected.data() + slot * slot_bytes(),
                         static_cast<std::size_t>(slot_bytes())))
          << "sequence " << s << " cut at " << token;
      same(pool, slot);
    }
    ASSERT_EQ(with_state, expected) << "states";
  }

 private:
  static constexpr std::int64_t kChannels = 29;

  [[nodiscard]] std::int64_t sequences() const { return static_cast<std::int64_t>(slots_.size()); }
  [[nodiscard]] std::int64_t length(std::int64_t s) const { return bounds_[s + 1] - bounds_[s]; }
  [[nodiscard]] std::int64_t slot_bytes() const {
    return columns_ * kChannels * element_bytes(state_dtype_);
  }
  std::vector<char> random_values(std::int64_t count, DType dtype) {
    std::vector<char> data(static_cast<std::size_t>(count * element_bytes(dtype)));
    for (std::int64_t i = 0; i < count; ++i) {
      store_element(dtype, data.data() + i * element_bytes(dtype), 2.0 * random_.normal());
    }
    return data;
  }

  void pick() {
    circular_ = random_.chance(0.5);
    in_place_ = random_.chance(0.3);
    threads_ = random_.chance(0.1) ? 2 : 1;
    state_dtype_ = random_.chance(0.3) ? DType::kF32 : dtype_;
    columns_innermost_ = random_.chance(0.5);
    channels_first_ = random_.chance(0.3) && !in_place_;
    columns_ = width_ - 1 + random_.between(0, 3);
    base_ = circular_ ? 0 : random_.between(0, columns_ - (width_ - 1));
    const std::int64_t count = random_.between(1, 5);
    bounds_ = {0};
    constexpr int kSnapshotSlots = 6;
    for (std::int64_t s = 0; s < count; ++s) {
      bounds_.push_back(bounds_.back() + (random_.chance(0.1) ? 0 : random_.between(1, 30)));
      slots_.push_back(random_.chance(0.1) ? -1 : s);
      writes_.push_back(random_.chance(0.3) ? count + s : s);
      flags_.push_back(static_cast<std::uint8_t>(random_.chance(0.6)));
      positions_.push_back(random_.chance(0.1) ? -3 : random_.between(0, 50));
    }
    for (int i = 0; i < kSnapshotSlots; ++i) {
      const std::int64_t s = random_.between(0, count - 1), most = length(s);
      const std::int64_t token = random_.chance(0.3)
                                     ? random_.between(0, std::min<std::int64_t>(most, width_ - 1))
                                 : random_.chance(0.1) ? most + 1
                                                       : random_.between(0, most);
      const std::int64_t row[] = {random_.chance(0.05) ? count : s, token,
                                  random_.chance(0.05) ? -1 : 2 * count + i};
      rows_.insert(rows_.end(), std::begin(row), std::end(row));
    }
    pool_slots_ = 2 * count + kSnapshotSlots;
    state_ = random_values(pool_slots_ * columns_ * kChannels, state_dtype_);
    for (std::size_t i = static_cast<std::size_t>(count * slot_bytes()); i < state_.size(); ++i) {
      state_[i] = -1;  // slots that are only written
    }
    x_ = random_values(bounds_.back() * kChannels, dtype_);
    weight_ = random_values(kChannels * width_, dtype_);
  }

  TensorRef rows_view(void* data) const {
    const std::int64_t tokens = bounds_.back();
    TensorRef tensor = TensorRef::contiguous(data, dtype_, {tokens, kChannels});
    if (!channels_first_) return tensor;
    tensor.strides[0] = 1;
    tensor.strides[1] = std::max<std::int64_t>(tokens, 1);
    return tensor;
  }
  template <typename T>
  static TensorRef list(std::vector<T>& values, DType dtype) {
    return TensorRef::contiguous(values.data(), dtype, {static_cast<std::int64_t>(values.size())});
  }
  ForwardArgs call(std::vector<char>& x, std::vector<char>& out, std::vector<char>& pool) {
    ForwardArgs args;
    args.options.backend = backend_;
    args.options.threads = threads_;
    args.x = rows_view(x.data());
    args.out = in_place_ ? args.x : rows_view(out.data());
    args.weight = TensorRef::contiguous(weight_.data(), dtype_, {kChannels, width_});
    args.pool.state =
        TensorRef::contiguous(pool.data(), state_dtype_, {pool_slots_, columns_, kChannels});
    if (columns_innermost_) {
      args.pool.state->strides[1] = 1;
      args.pool.state->strides[2] = columns_;
    }
    args.pool.base_column = base_;
    if (circular_) args.pool.cache_seqlens = list(positions_, DType::kI64);
    return args;
  }

  std::vector<char> run(std::vector<char> pool, bool with_snapshots) {
    std::vector<char> x = x_, out(x_.size(), -1);
    ForwardArgs args = call(x, out, pool);
    args.sequences.query_start_loc = list(bounds_, DType::kI64);
    args.pool.read_slots = list(slots_, DType::kI64);
    args.pool.write_slots = list(writes_, DType::kI64);
    args.sequences.has_initial_state = list(flags_, DType::kBool);
    std::vector<std::int32_t> transposed(rows_.size());  // [3, snapshots]
    const auto count = static_cast<std::int64_t>(rows_.size()) / 3;
    for (std::int64_t i = 0; i < count; ++i) {
      for (int k = 0; k < 3; ++k) {
        transposed[k * count + i] = static_cast<std::int32_t>(rows_[i * 3 + k]);
      }
    }
    if (with_snapshots) {
      args.pool.snapshots = TensorRef::contiguous(rows_.data(), DType::kI64, {count, 3});
      if (random_.chance(0.5)) {
        args.pool.snapshots = TensorRef::contiguous(transposed.data(), DType::kI32, {count, 3});
        args.pool.snapshots->strides[0] = 1;
        args.pool.snapshots->strides[1] = count;
      }
    }
    const Status status = forward(args);
    EXPECT_TRUE(status.ok()) << status.message();
    after_ = std::move(pool);
    return in_place_ ? x : out;
  }

  // One sequence, cut, with its final state in `slot`.
  void cut(std::int64_t s, std::int64_t token, std::int64_t slot, std::vector<char>& pool) {
    std::vector<char> x = x_, out(x_.size());
    ForwardArgs args = call(x, out, pool);
    std::int64_t bounds[] = {bounds_[s], bounds_[s] + token};
    args.sequences.query_start_loc = TensorRef::contiguous(bounds, DType::kI64, {2});
    args.pool.read_slots = TensorRef::contiguous(&slots_[s], DType::kI64, {1});
    args.pool.write_slots = TensorRef::contiguous(&slot, DType::kI64, {1});
    args.sequences.has_initial_state = TensorRef::contiguous(&flags_[s], DType::kBool, {1});
    const Status status = forward(args);
    EXPECT_TRUE(status.ok()) << status.message();
  }

  [[nodiscard]] std::int64_t state_index(std::int64_t slot, std::int64_t column,
                                         std::int64_t c) const {
    return columns_innermost_ ? (slot * kChannels + c) * columns_ + column
                              : (slot * columns_ + column) * kChannels + c;
  }

  // Input `number` of sequence s to where a state that ends before `token` has it.
  void keep(std::vector<char>& expected, std::int64_t s, std::int64_t number, std::int64_t token,
            std::int64_t slot) const {
    const std::int64_t position = std::max<std::int64_t>(positions_[s], 0);
    const auto column_of = [&](std::int64_t n) { return (position + n + 2 * columns_) % columns_; };
    const std::int64_t to = circular_ ? column_of(number) : base_ + number - token + width_ - 1;
    const std::int64_t from = circular_ ? column_of(number) : base_ + number + width_ - 1;
    const std::int64_t bytes = element_bytes(state_dtype_);
    for (std::int64_t c = 0; c < kChannels; ++c) {
      char* at = expected.data() + state_index(slot, to, c) * bytes;
      const std::int64_t row = bounds_[s] + number;
      const std::int64_t element = channels_first_ ? c * bounds_.back() + row : row * kChannels + c;
      if (number >= 0 && state_dtype_ == dtype_) {
        std::memcpy(at, x_.data() + element * bytes, static_cast<std::size_t>(bytes));
      } else if (number >= 0) {
        store_element(state_dtype_, at,
                      load_element(dtype_, x_.data() + element * element_bytes(dtype_)));
      } else if (flags_[s] != 0) {
        std::memcpy(at, state_.data() + state_index(slots_[s], from, c) * bytes,
                    static_cast<std::size_t>(bytes));
      } else {
        std::memset(at, 0, static_cast<std::size_t>(bytes));
      }
    }
  }

  BackendId backend_;
  int width_;
  DType dtype_, state_dtype_{};
  tools::Random random_;
  bool circular_ = false, in_place_ = false, columns_innermost_ = false, channels_first_ = false;
  std::int32_t threads_ = 1;
  std::int64_t columns_ = 0, base_ = 0, pool_slots_ = 0;
  std::vector<std::int64_t> bounds_, slots_, writes_, positions_, rows_;
  std::vector<std::uint8_t> flags_;
  std::vector<char> state_, x_, weight_, after_;
};

TEST_P(Snapshots, AreFinalStatesOfSequencesCutThere) {
  std::vector<int> widths(kWidths.all.begin(), kWidths.all.end());
  widths.push_back(kWidths.all.back() + 9);
  const std::uint32_t seeds = GetParam() == BackendId::kCpu ? 20 : 4;
  for (const int width : widths) {
    for (const auto& [dtype, name] : kDTypes) {
      for (std::uint32_t seed = 0; seed < seeds; ++seed) {
        RandomSnapshots(GetParam(), width, dtype, seed).check();
        if (HasFatalFailure() || HasNonfatalFailure()) {
          FAIL() << "width " << width << ", " << name << ", seed " << seed;
        }
      }
    }
  }
}

}  // namespace
}  // namespace shortconv
