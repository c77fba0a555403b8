// A case on the GPU: its buffers are copied there, guard bands and poison included, and back.
#pragma once

#include <span>
#include <vector>

#include "shortconv/plan.hpp"
#include "verify/buffers.hpp"

namespace shortconv::tools::verify {

/// Makes the call that `arguments` describe by their host addresses. Waits for it, so that what
/// goes wrong on the GPU is a Status of this call.
[[nodiscard]] Status forward_on_gpu(ForwardArgs arguments, const CaseBuffers& buffers);

/// The same of a commit, with all tensors it may touch.
[[nodiscard]] Status commit_on_gpu(CommitArgs arguments,
                                   const std::vector<const TensorBuffer*>& buffers);

/// The same of a backward call; its workspace is one of the tensors.
[[nodiscard]] Status backward_on_gpu(BackwardArgs arguments,
                                     const std::vector<const TensorBuffer*>& buffers);

/// The same of a call with groups and of the operations after it. `groups` is the memory that
/// `arguments` refer to.
[[nodiscard]] Status grouped_on_gpu(GroupedArgs arguments, std::span<ChannelGroup> groups,
                                    const std::vector<const TensorBuffer*>& buffers);
[[nodiscard]] Status grouped_backward_on_gpu(GroupedBackwardArgs arguments,
                                             std::span<ChannelGroup> groups,
                                             const std::vector<const TensorBuffer*>& buffers);
[[nodiscard]] Status norm_on_gpu(L2NormArgs arguments,
                                 const std::vector<const TensorBuffer*>& buffers);
[[nodiscard]] Status gates_on_gpu(GateArgs arguments,
                                  const std::vector<const TensorBuffer*>& buffers);

}  // namespace shortconv::tools::verify
