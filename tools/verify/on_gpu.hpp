// A case on the GPU: its buffers are copied there, guard bands and poison included, and back.
#pragma once

#include "shortconv/plan.hpp"
#include "verify/buffers.hpp"

namespace shortconv::tools::verify {

/// Makes the call that `arguments` describe by their host addresses. Waits for it, so that what
/// goes wrong on the GPU is a Status of this call.
[[nodiscard]] Status forward_on_gpu(ForwardArgs arguments, const CaseBuffers& buffers);

}  // namespace shortconv::tools::verify
