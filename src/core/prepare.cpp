// Index preparation: arguments -> checked call -> backend. Everything the host can know is checked
// here and only here.
#include "shortconv/prepare.hpp"

#include <algorithm>

#include "core/backend.hpp"
#include "core/capability.hpp"
#include "core/check.hpp"

namespace shortconv {
namespace {

// The number of tokens is an argument and not the extent of a tensor, which has this limit too.
constexpr std::int64_t kMostTokens = std::int64_t{1} << 62;

IndexTensor index_tensor(const TensorRef& tensor) {
  IndexTensor index{.data = tensor.data, .dtype = tensor.dtype, .inner = tensor.strides[0]};
  if (tensor.ndim == 2) {
    index.outer = tensor.strides[0];
    index.inner = tensor.strides[1];
  }
  return index;
}

/// Checks of one call, whose first tensor names the device.
class PreparationChecker : public Checker {
 public:
  PreparationChecker(std::string_view owner, const TensorRef& first)
      : owner_(owner), device_(first.device) {}

  void indices(std::string_view argument, const TensorRef& tensor,
               std::initializer_list<Symbol*> sizes) {
    this->tensor(argument, tensor, sizes)
        .dtype(argument, tensor, kIndices)
        .device(argument, tensor, device_, owner_);
  }

  /// Fixes the number of sequences.
  void bounds(const TensorRef& query_start_loc, Symbol& sequences) {
    Symbol bounds{"sequences + 1"};
    indices("query_start_loc", query_start_loc, {&bounds});
    require(bounds.value >= 1, "query_start_loc", "is empty; expected sequences + 1 entries");
    sequences = {.name = "sequences", .value = bounds.value - 1, .owner = "query_start_loc"};
  }

  void separate(std::string_view argument, const TensorRef& written, std::string_view other_name,
                const TensorRef& other) {
    if (ok()) require(!ranges_overlap(written, other), argument, "overlaps ", other_name);
  }

  /// Numbers up to `most` are to be written.
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
  check_listed(check, "backend", kBackends, args.backend);
  check.require(args.tokens >= 0 && args.tokens <= kMostTokens, "tokens", "is ", args.tokens,
                "; expected 0 to 2^62");
  check.require(args.block_tokens >= 1, "block_tokens", "is ", args.block_tokens,
                "; expected 1 or more");
  Symbol sequences, blocks{"blocks"}, rows{"rows"};
  Symbol fields{.name = "sequence, token, slot", .value = 3, .owner = "the library"};
  check.bounds(args.query_start_loc, sequences);
  check.indices("computed_tokens", args.computed_tokens, {&sequences});
  check.indices("block_slots", args.block_slots, {&sequences, &blocks});
  check.indices("snapshots", args.snapshots, {&rows, &fields});
  check_written(check, "snapshots", args.snapshots);
  if (!check.ok()) return check.status();
  const std::int64_t needed = args.tokens / args.block_tokens + sequences.value;
  check.require(rows.value >= needed, "snapshots", "has ", rows.value, " rows, but ", args.tokens,
                " tokens in blocks of ", args.block_tokens, " and ", sequences.value,
                " sequences need ", needed, " (tokens / block_tokens + sequences)");
  check.holds("snapshots", args.snapshots, std::max(args.tokens, sequences.value));
  check.separate("snapshots", args.snapshots, "query_start_loc", args.query_start_loc);
  check.separate("snapshots", args.snapshots, "computed_tokens", args.computed_tokens);
  check.separate("snapshots", args.snapshots, "block_slots", args.block_slots);
  if (!check.ok()) return check.status();
  call = {
      .query_start_loc = index_tensor(args.query_start_loc),
      .computed_tokens = index_tensor(args.computed_tokens),
      .block_slots = index_tensor(args.block_slots),
      .snapshots = index_tensor(args.snapshots),
      .device = args.query_start_loc.device,
      .sequences = sequences.value,
      .tokens = args.tokens,
      .blocks = blocks.value,
      .block_tokens = args.block_tokens,
      .rows = rows.value,
  };
  return {};
}

Status check_tree_parents(const TreeParentsArgs& args, TreeParents& call) {
  PreparationChecker check("first_child", args.first_child);
  check_listed(check, "backend", kBackends, args.backend);
  Symbol sequences{"sequences"}, tokens{"tokens"};
  const auto links = [&](std::string_view argument, const TensorRef& tensor) {
    if (args.query_start_loc) {
      check.indices(argument, tensor, {&tokens});
    } else {
      check.indices(argument, tensor, {&sequences, &tokens});
    }
  };
  links("first_child", args.first_child);
  links("next_sibling", args.next_sibling);
  links("parents", args.parents);
  check_written(check, "parents", args.parents);
  if (args.query_start_loc) check.bounds(*args.query_start_loc, sequences);
  check.holds("parents", args.parents, tokens.value);
  check.separate("parents", args.parents, "first_child", args.first_child);
  check.separate("parents", args.parents, "next_sibling", args.next_sibling);
  if (args.query_start_loc) {
    check.separate("parents", args.parents, "query_start_loc", *args.query_start_loc);
  }
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

}  // namespace

Status block_snapshots(const BlockSnapshotsArgs& args, void* stream) {
  BlockSnapshots call;
  if (Status status = check_block_snapshots(args, call); !status.ok()) return status;
  const Backend* backend = nullptr;
  if (Status status = choose_backend(args.backend, call.device.type, "query_start_loc", backend);
      !status.ok()) {
    return status;
  }
  return backend->block_snapshots(call, stream);
}

Status tree_parents(const TreeParentsArgs& args, void* stream) {
  TreeParents call;
  if (Status status = check_tree_parents(args, call); !status.ok()) return status;
  const Backend* backend = nullptr;
  if (Status status = choose_backend(args.backend, call.device.type, "first_child", backend);
      !status.ok()) {
    return status;
  }
  return backend->tree_parents(call, stream);
}

}  // namespace shortconv
