#include "verify/on_gpu.hpp"

#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "common/error.hpp"
#include "common/gpu.hpp"
#include "shortconv/argument_table.hpp"

namespace shortconv::tools::verify {
namespace {

// One place on the GPU for the buffers of the case at hand. It lasts as long as the process and
// grows with the cases: an allocation for each tensor would take longer than the calls.
class Arena {
 public:
  void upload(const std::vector<const TensorBuffer*>& buffers) {
    place(buffers);
    for (const auto& [bytes, offset] : places_) {
      std::memcpy(staging_.data() + offset, bytes.data(), bytes.size());
    }
    start_copy_to_gpu(memory_.data(), staging_.data(), used_, stream());
  }

  void download() const {
    start_copy_from_gpu(staging_.data(), memory_.data(), used_, stream());
    stream_.wait();
    for (const auto& [bytes, offset] : places_) {
      std::memcpy(bytes.data(), staging_.data() + offset, bytes.size());
    }
  }

  // Null stays null: absent is not the same as empty.
  [[nodiscard]] void* address_of(void* host) const {
    const auto* wanted = static_cast<const std::byte*>(host);
    for (const auto& [bytes, offset] : places_) {
      const std::byte* first = bytes.data();
      const bool inside =
          !std::less<>()(wanted, first) && std::less<>()(wanted, first + bytes.size());
      if (inside) return static_cast<std::byte*>(memory_.data()) + offset + (wanted - first);
    }
    return nullptr;
  }

  [[nodiscard]] void* stream() const { return stream_.handle(); }

 private:
  struct Place {
    std::span<std::byte> bytes;  // on the host
    std::int64_t offset;
  };

  // Both memories start on a multiple of the host buffers' alignment, so whatever is aligned or
  // misaligned there is so here.
  void place(const std::vector<const TensorBuffer*>& buffers) {
    places_.clear();
    used_ = 0;
    for (const TensorBuffer* buffer : buffers) {
      places_.push_back({buffer->bytes(), used_});
      const std::int64_t end = used_ + std::ssize(buffer->bytes());
      used_ = (end + Buffer::kAlignment - 1) / Buffer::kAlignment * Buffer::kAlignment;
    }
    if (used_ <= memory_.bytes()) return;
    memory_ = {};  // before the larger one is there
    staging_ = {};
    memory_ = GpuBuffer(2 * used_);
    staging_ = PinnedBuffer(2 * used_);
  }

  GpuStream stream_;
  GpuBuffer memory_;
  PinnedBuffer staging_;
  std::vector<Place> places_;
  std::int64_t used_ = 0;
};

void move(TensorRef& tensor, const Arena& arena) {
  tensor.data = arena.address_of(tensor.data);
  tensor.device = {DeviceType::kCuda, 0};
}
void move(std::optional<TensorRef>& tensor, const Arena& arena) {
  if (tensor) move(*tensor, arena);
}

Arena& the_arena() {
  static Arena arena;
  return arena;
}

// `call` gets the arena, whose stream it runs on.
template <typename Call>
Status run_on_gpu(const std::vector<const TensorBuffer*>& buffers, Call&& call) {
  Arena& arena = the_arena();
  arena.upload(buffers);
  const Status status = call(arena);
  try {
    arena.download();  // of a refused call as well: it must have changed nothing
  } catch (const CommandError& error) {
    return {Code::kInternal, error.what()};  // so that it is reported with its case
  }
  return status;
}

void move_all(ForwardArgs& arguments, const Arena& arena) {
  visit_forward_tensors([&](const Argument&, auto& tensor) { move(tensor, arena); }, arguments);
}

}  // namespace

Status forward_on_gpu(ForwardArgs arguments, const CaseBuffers& buffers) {
  return run_on_gpu(buffers.tensors(), [&](const Arena& arena) {
    move_all(arguments, arena);
    return forward(arguments, arena.stream());
  });
}

Status commit_on_gpu(CommitArgs arguments, const std::vector<const TensorBuffer*>& buffers) {
  return run_on_gpu(buffers, [&](const Arena& arena) {
    for (TensorRef* tensor :
         {&arguments.intermediate_states, &arguments.state, &arguments.accepted}) {
      move(*tensor, arena);
    }
    for (std::optional<TensorRef>* tensor :
         {&arguments.slots, &arguments.second_slots, &arguments.query_start_loc}) {
      move(*tensor, arena);
    }
    return commit(arguments, arena.stream());
  });
}

Status backward_on_gpu(BackwardArgs arguments, const std::vector<const TensorBuffer*>& buffers) {
  return run_on_gpu(buffers, [&](const Arena& arena) {
    visit_backward_tensors([&](const Argument&, auto& tensor) { move(tensor, arena); }, arguments);
    arguments.workspace = arena.address_of(arguments.workspace);
    return backward(arguments, arena.stream());
  });
}

Status grouped_on_gpu(GroupedArgs arguments, std::span<ChannelGroup> groups,
                      const std::vector<const TensorBuffer*>& buffers) {
  return run_on_gpu(buffers, [&](const Arena& arena) {
    move_all(arguments.forward, arena);
    for (ChannelGroup& group : groups) move(group.out, arena);
    if (arguments.gates) {
      visit_gate_tensors([&](const Argument&, TensorRef& tensor) { move(tensor, arena); },
                         *arguments.gates);
    }
    return forward_groups(arguments, arena.stream());
  });
}

Status grouped_backward_on_gpu(GroupedBackwardArgs arguments, std::span<ChannelGroup> groups,
                               const std::vector<const TensorBuffer*>& buffers) {
  return run_on_gpu(buffers, [&](const Arena& arena) {
    const auto move_one = [&](const Argument&, auto& tensor) { move(tensor, arena); };
    visit_backward_tensors(move_one, arguments.backward);
    arguments.backward.workspace = arena.address_of(arguments.backward.workspace);
    for (ChannelGroup& group : groups) move(group.out, arena);
    if (arguments.gates) visit_gate_gradient_tensors(move_one, *arguments.gates);
    return backward_groups(arguments, arena.stream());
  });
}

Status norm_on_gpu(L2NormArgs arguments, const std::vector<const TensorBuffer*>& buffers) {
  return run_on_gpu(buffers, [&](const Arena& arena) {
    move(arguments.x, arena);
    move(arguments.out, arena);
    return l2_norm(arguments, arena.stream());
  });
}

Status gates_on_gpu(GateArgs arguments, const std::vector<const TensorBuffer*>& buffers) {
  return run_on_gpu(buffers, [&](const Arena& arena) {
    visit_gate_tensors([&](const Argument&, TensorRef& tensor) { move(tensor, arena); }, arguments);
    return delta_gates(arguments, BackendId::kAuto, arena.stream());
  });
}

}  // namespace shortconv::tools::verify
