// Index preparation: arguments -> checked call -> backend. All checks that are possible on the host
// are here.
#include "shortconv/prepare.hpp"

#include <algorithm>

#include "core/backend.hpp"
#include "core/capability.hpp"
#include "core/check.hpp"

namespace shortconv {
namespace {

// The limit of tensor sizes, for a number of tokens that is not the size of a tensor.
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 62;

IndexTensor index_tensor(const TensorRef& tensor) {
  IndexTensor index{.data = tensor.data, .dtype = tensor.dtype, .inner = tensor.strides[0]};
  if (tensor.ndim == 2) {
    index.outer = tensor.strides[0];
    index.inner = tensor.strides[1];
  }
  return index;
}

/// Checks of one call. The other tensors must be on the device of the first.
class PreparationChecker : public Checker {
 public:
  PreparationChecker(std::string_view owner, const TensorRef& first)
      : owner_(owner), device_(first.device) {}

  void indices(std::string_view argument, const TensorRef& tensor,
               std::initializer_list<SharedSize*> sizes, Access access = Access::kRead) {
    this->tensor(argument, tensor, sizes)
        .dtype(argument, tensor, kIndexDTypes)
        .device(argument, tensor, device_, owner_);
    if (is_written(access)) check_written(argument, tensor, access);
    if (ok()) record(argument, tensor, is_written(access));
  }

  /// Sets the number of sequences.
  void bounds(const TensorRef& query_start_loc, SharedSize& sequences) {
    SharedSize bounds{"sequences + 1"};
    indices("query_start_loc", query_start_loc, {&bounds});
    require(bounds.value >= 1, "query_start_loc", "is empty; expected sequences + 1 entries");
    sequences = {.name = "sequences", .value = bounds.value - 1, .owner = "query_start_loc"};
  }

  void no_overlaps() {
    check_overlaps([](const CheckedTensor&, const CheckedTensor&) { return false; });
  }

  /// The dtype of a written tensor must represent values up to `most`.
  void holds(std::string_view argument, const TensorRef& written, std::int64_t most) {
    require(written.dtype == DType::kI64 || most <= INT32_MAX, argument,
            "dtype i32 cannot hold numbers up to ", most, "; expected i64");
  }

 private:
  std::string_view owner_;
  Device device_;
};

Status check_block_snapshots(const BlockSnapshotsArgs& args, BlockSnapshots& call) {
  PreparationChecker check("query_start_loc", args.query_start_loc);
  check.check_enumerator("backend", kBackends, args.backend);
  check.require(args.tokens >= 0 && args.tokens <= kMaxTokens, "tokens", "is ", args.tokens,
                "; expected 0 to 2^62");
  check.require(args.block_size >= 1, "block_size", "is ", args.block_size, "; expected 1 or more");
  SharedSize sequences, blocks{"blocks"}, rows{"rows"};
  SharedSize fields{.name = "sequence, token, slot", .value = 3, .owner = "the library"};
  check.bounds(args.query_start_loc, sequences);
  check.indices("num_computed_tokens", args.num_computed_tokens, {&sequences});
  check.indices("block_slots", args.block_slots, {&sequences, &blocks});
  check.indices("snapshots", args.snapshots, {&rows, &fields}, Access::kWrite);
  if (!check.ok()) return check.status();
  const std::int64_t needed = args.tokens / args.block_size + sequences.value;
  check.require(rows.value >= needed, "snapshots", "has ", rows.value, " rows, but ", args.tokens,
                " tokens in blocks of ", args.block_size, " and ", sequences.value,
                " sequences need ", needed, " (tokens / block_size + sequences)");
  check.holds("snapshots", args.snapshots, std::max(args.tokens, sequences.value));
  check.no_overlaps();
  if (!check.ok()) return check.status();
  call = {
      .query_start_loc = index_tensor(args.query_start_loc),
      .num_computed_tokens = index_tensor(args.num_computed_tokens),
      .block_slots = index_tensor(args.block_slots),
      .snapshots = index_tensor(args.snapshots),
      .device = args.query_start_loc.device,
      .sequences = sequences.value,
      .tokens = args.tokens,
      .blocks = blocks.value,
      .block_size = args.block_size,
      .rows = rows.value,
  };
  return {};
}

Status check_tree_parents(const TreeParentsArgs& args, TreeParents& call) {
  PreparationChecker check("first_child", args.first_child);
  check.check_enumerator("backend", kBackends, args.backend);
  SharedSize sequences{"sequences"}, tokens{"tokens"};
  const auto tree = [&](std::string_view argument, const TensorRef& tensor, Access access) {
    if (args.query_start_loc) {
      check.indices(argument, tensor, {&tokens}, access);
    } else {
      check.indices(argument, tensor, {&sequences, &tokens}, access);
    }
  };
  tree("first_child", args.first_child, Access::kRead);
  tree("next_sibling", args.next_sibling, Access::kRead);
  tree("parents", args.parents, Access::kWrite);
  if (args.query_start_loc) check.bounds(*args.query_start_loc, sequences);
  check.holds("parents", args.parents, tokens.value);
  check.no_overlaps();
  if (!check.ok()) return check.status();
  call = {
      .first_child = index_tensor(args.first_child),
      .next_sibling = index_tensor(args.next_sibling),
      .parents = index_tensor(args.parents),
      .query_start_loc = args.query_start_loc ? index_tensor(*args.query_start_loc) : IndexTensor{},
      .device = args.first_child.device,
      .sequences = sequences.value,
      .tokens = tokens.value,
  };
  return {};
}

/// Checks the arguments and runs `Backend::*run`. `first` is the tensor that names the device.
template <typename Args, typename Call>
Status prepare(const Args& args, std::string_view first, Status (*check)(const Args&, Call&),
               Status (*Backend::*run)(const Call&, void*), void* stream) {
  Call call;
  const Backend* backend = nullptr;
  Status status = check(args, call);
  if (status.ok()) status = choose_backend(args.backend, call.device.type, first, backend);
  return status.ok() ? (backend->*run)(call, stream) : status;
}

}  // namespace

Status block_snapshots(const BlockSnapshotsArgs& args, void* stream) {
  return prepare(args, "query_start_loc", check_block_snapshots, &Backend::block_snapshots, stream);
}

Status tree_parents(const TreeParentsArgs& args, void* stream) {
  return prepare(args, "first_child", check_tree_parents, &Backend::tree_parents, stream);
}

}  // namespace shortconv
