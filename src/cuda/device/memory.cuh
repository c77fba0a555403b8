// Loads and stores of groups of channels. They are volatile, so that the compiler keeps their
// order: it would otherwise delay a load to the first use of its value. A strip is up to 10% slower
// if its first sum starts before all of its loads are issued: 8192 x 8192 bf16 on an H200
// takes 67.4 us instead of 73.0 (same source, other schedule).
#pragma once

#include <cstdint>
#include <type_traits>

namespace shortconv::cuda {

/// Loads words in the widest vectors that divide them: 16, 8 or 4 bytes. `from` is aligned to the
/// vectors.
template <int kWords>
__device__ inline void load_words(const void* from, std::uint32_t (&words)[kWords]) {
  const auto* address = static_cast<const std::uint32_t*>(from);
  if constexpr (kWords % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words[i]), "=r"(words[i + 1]), "=r"(words[i + 2]), "=r"(words[i + 3])
                   : "l"(address + i));
    }
  } else if constexpr (kWords % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kWords; i += 2) {
      asm volatile("ld.global.v2.u32 {%0, %1}, [%2];"
                   : "=r"(words[i]), "=r"(words[i + 1])
                   : "l"(address + i));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      asm volatile("ld.global.u32 %0, [%1];" : "=r"(words[i]) : "l"(address + i));
    }
  }
}

/// Conditional loads are predicated, without a branch: the compiler schedules all it can before a
/// branch, and a warp would wait for the result of one load before it issues the next.
__device__ inline void load_word_if(bool wanted, const void* from, std::uint32_t& word) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %2, 0;\n@wanted ld.global.u32 %0, [%1];\n}"
      : "+r"(word)
      : "l"(from), "r"(static_cast<std::uint32_t>(wanted)));
}

__device__ inline void load_byte_if(bool wanted, const void* from, std::uint32_t& byte) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %2, 0;\n@wanted ld.global.u8 %0, [%1];\n}"
      : "+r"(byte)
      : "l"(from), "r"(static_cast<std::uint32_t>(wanted)));
}

/// Keeps the words in the L1 cache. For weights, which all blocks read: the stream of rows must not
/// evict them.
template <int kWords>
__device__ inline void load_words_evict_last(const void* from, std::uint32_t (&words)[kWords]) {
  const auto* address = static_cast<const std::uint32_t*>(from);
  if constexpr (kWords % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      asm volatile("ld.global.L1::evict_last.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words[i]), "=r"(words[i + 1]), "=r"(words[i + 2]), "=r"(words[i + 3])
                   : "l"(address + i));
    }
  } else if constexpr (kWords == 2) {
    asm volatile("ld.global.L1::evict_last.v2.u32 {%0, %1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "l"(address));
  } else {
    static_assert(kWords == 1);
    asm volatile("ld.global.L1::evict_last.u32 %0, [%1];" : "=r"(words[0]) : "l"(address));
  }
}

/// As load_words_evict_last, for bounds of sequences.
__device__ inline int load_int_evict_last(const void* from) {
  int value;
  asm volatile("ld.global.L1::evict_last.s32 %0, [%1];" : "=r"(value) : "l"(from));
  return value;
}

__device__ inline void load_int_if_evict_last(bool wanted, const void* from, int& value) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %2, 0;\n"
      "@wanted ld.global.L1::evict_last.s32 %0, [%1];\n}"
      : "+r"(value)
      : "l"(from), "r"(static_cast<std::uint32_t>(wanted)));
}

template <int kWords>
__device__ inline void store_words(void* to, const std::uint32_t (&words)[kWords]) {
  auto* address = static_cast<std::uint32_t*>(to);
  if constexpr (kWords % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address + i), "r"(words[i]),
                   "r"(words[i + 1]), "r"(words[i + 2]), "r"(words[i + 3])
                   : "memory");
    }
  } else if constexpr (kWords % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kWords; i += 2) {
      asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(address + i), "r"(words[i]),
                   "r"(words[i + 1])
                   : "memory");
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      asm volatile("st.global.u32 [%0], %1;" ::"l"(address + i), "r"(words[i]) : "memory");
    }
  }
}

using SharedAddress = std::uint32_t;
__device__ inline SharedAddress shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

/// Copies 16 or 8 bytes from global to shared memory, without registers and without waiting. The
/// thread sees them after commit_copies and wait_for_copies, its warp after a barrier as well.
template <int kBytes>
__device__ inline void copy_async(SharedAddress to, const void* from) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  } else {
    static_assert(kBytes == 8);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
  }
}

/// As copy_async of 16 or 4 bytes, of which the first `bytes` are read; the others become 0.
template <int kBytes>
__device__ inline void copy_async_first(SharedAddress to, const void* from, int bytes) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(bytes)
                 : "memory");
  } else {
    static_assert(kBytes == 4);
    asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
                 "r"(bytes)
                 : "memory");
  }
}

/// Ends a group of copies.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most the last `kGroups` groups are in flight.
template <int kGroups>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

/// Loads one, two or four words from shared memory, aligned to them all.
template <int kWords>
__device__ inline void load_shared_words(SharedAddress from, std::uint32_t (&words)[kWords]) {
  if constexpr (kWords == 4) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from)
                 : "memory");
  } else if constexpr (kWords == 2) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(from)
                 : "memory");
  } else {
    static_assert(kWords == 1);
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(words[0]) : "r"(from) : "memory");
  }
}

/// Four words, aligned to 16 bytes.
__device__ inline void store_shared_words(SharedAddress to, const std::uint32_t (&words)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}

/// One element of 2 or 4 bytes.
template <typename T>
__device__ inline T load_shared_element(SharedAddress from) {
  T element;
  if constexpr (sizeof(T) == 4) {
    asm volatile("ld.shared.u32 %0, [%1];"
                 : "=r"(reinterpret_cast<std::uint32_t&>(element))
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ld.shared.u16 %0, [%1];"
                 : "=h"(reinterpret_cast<std::uint16_t&>(element))
                 : "r"(from)
                 : "memory");
  }
  return element;
}
template <typename T>
__device__ inline void store_shared_element(SharedAddress to, const T& element) {
  if constexpr (sizeof(T) == 4) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to),
                 "r"(reinterpret_cast<const std::uint32_t&>(element))
                 : "memory");
  } else {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to),
                 "h"(reinterpret_cast<const std::uint16_t&>(element))
                 : "memory");
  }
}

/// One, two or four adjacent floats in shared memory, aligned to them all.
template <int kCount>
__device__ inline void store_shared(float* to, const float (&values)[kCount]) {
  if constexpr (kCount == 4) {
    *reinterpret_cast<float4*>(to) = {values[0], values[1], values[2], values[3]};
  } else if constexpr (kCount == 2) {
    *reinterpret_cast<float2*>(to) = {values[0], values[1]};
  } else {
    static_assert(kCount == 1);
    *to = values[0];
  }
}

template <int kCount>
__device__ inline void load_shared(const float* from, float (&values)[kCount]) {
  if constexpr (kCount == 4) {
    const float4 all = *reinterpret_cast<const float4*>(from);
    values[0] = all.x, values[1] = all.y, values[2] = all.z, values[3] = all.w;
  } else if constexpr (kCount == 2) {
    const float2 both = *reinterpret_cast<const float2*>(from);
    values[0] = both.x, values[1] = both.y;
  } else {
    static_assert(kCount == 1);
    values[0] = *from;
  }
}

/// The shared memory that the launch asks for.
__device__ inline char* dynamic_shared_memory() {
  extern __shared__ __align__(16) char shared_memory[];
  return shared_memory;
}

/// As store_words of one or two words, predicated, without a branch.
template <int kWords>
__device__ inline void store_words_if(bool wanted, void* to, const std::uint32_t (&words)[kWords]) {
  const auto flag = static_cast<std::uint32_t>(wanted);
  if constexpr (kWords == 2) {
    asm volatile(
        "{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %3, 0;\n"
        "@wanted st.global.v2.u32 [%0], {%1, %2};\n}" ::"l"(to),
        "r"(words[0]), "r"(words[1]), "r"(flag)
        : "memory");
  } else {
    static_assert(kWords == 1);
    asm volatile(
        "{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %2, 0;\n"
        "@wanted st.global.u32 [%0], %1;\n}" ::"l"(to),
        "r"(words[0]), "r"(flag)
        : "memory");
  }
}

/// `from` + rows * row_bytes in one instruction. The compiler would use four.
template <typename T>
__device__ inline T* rows_after(T* from, std::int32_t row_bytes, std::int32_t rows) {
  T* to;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(to) : "r"(row_bytes), "r"(rows), "l"(from));
  return to;
}

/// As rows_after, for compile-time rows: the compiler emits one 64-bit addition for each.
template <typename T>
__device__ inline T* nth_row(T* from, std::int32_t row_bytes, int row) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(from) + std::int64_t{row_bytes} * row);
}

template <int kWords>
__device__ inline void copy_words(const std::uint32_t (&from)[kWords],
                                  std::uint32_t (&to)[kWords]) {
#pragma unroll
  for (int i = 0; i < kWords; ++i) to[i] = from[i];
}

template <int kWords>
__device__ inline void clear_words(std::uint32_t (&words)[kWords]) {
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = 0;
}

/// Makes the compiler compute an address in global memory, or a number, at this point and not
/// later.
template <typename T>
__device__ inline void opaque(T*& address) {
  asm volatile("" : "+l"(address));
  __builtin_assume(__isGlobal(address));
}
__device__ inline void opaque(std::uint32_t& number) { asm volatile("" : "+r"(number)); }
__device__ inline void opaque(std::int64_t& number) { asm volatile("" : "+l"(number)); }

/// Hides from the compiler that a number is equal in all lanes. Otherwise the assembler moves what
/// is loaded through it to uniform registers, and the warp waits for the load right after its
/// issue.
__device__ inline std::uint32_t make_nonuniform(std::uint32_t number) {
  std::uint32_t zero;
  asm("shr.u32 %0, %1, 10;" : "=r"(zero) : "r"(threadIdx.x));  // 0: at most 1024 threads
  return number + zero;
}

/// Loads a value that the previous kernel may still be writing. It bypasses the L1 cache, so that a
/// load after the PDL wait does not find the old value there.
__device__ inline std::uint32_t load_relaxed(const void* from) {
  std::uint32_t word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
  return word;
}

/// Prefetches 16-byte units into the L2 cache, from the one that contains `from`. The L2 cache
/// stays coherent with writes of the previous kernel. One instruction for all units. Decode of 64 x
/// 8192 takes 3.33 us without a prefetch, 3.47 with a prefetch by each lane, 3.15 with this one.
__device__ inline void prefetch_l2(const void* from, std::uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  const std::uint64_t first = reinterpret_cast<std::uint64_t>(from) & ~std::uint64_t{15};
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(first), "r"(bytes & ~15u)
               : "memory");
#endif
}

/// Lets the next kernel of the stream start its blocks as soon as all blocks of this kernel have
/// executed this or ended. Its blocks still wait for this kernel, see pdl.cuh.
__device__ inline void pdl_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// States that this kernel neither reads what the previous one of the stream writes nor writes what
/// that one reads: it may access memory before pdl_wait.
__device__ inline void pdl_overlap() {}

/// Waits until the previous kernel has finished and its writes are visible. Memory must not be
/// accessed before, except after pdl_overlap.
__device__ inline void pdl_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace shortconv::cuda
