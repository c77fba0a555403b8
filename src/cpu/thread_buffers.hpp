// Buffers that are too large for the stack of every thread.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "core/check.hpp"
#include "shortconv/status.hpp"

namespace shortconv::cpu {

/// The buffers of the calling thread: allocated by its first call, kept until the thread ends. Null
/// if there is no memory.
template <typename Buffers>
Buffers* thread_buffers() {
  thread_local std::unique_ptr<Buffers> buffers;
  if (buffers == nullptr) buffers.reset(new (std::nothrow) Buffers);
  return buffers.get();
}

template <typename Buffers>
Status no_thread_buffers() {
  return {Code::kOutOfMemory, concat("memory: none for the buffers of this thread, ",
                                     static_cast<std::int64_t>(sizeof(Buffers)), " bytes")};
}

}  // namespace shortconv::cpu
