// Loads and stores of whole groups of channels. They are volatile so that they stay where they are
// written: the compiler likes to delay a load to where its value is used, and a strip whose loads
// are not all under way before its first sum runs up to 10% slower (67.4 against 73.0 us for 8192 x
// 8192 bf16 on an H200, same source, other schedule).
#pragma once

#include <cstdint>
#include <type_traits>

namespace shortconv::cuda {

/// In the widest vectors that so many words are a multiple of, aligned as these are: 16, 8 or 4
/// bytes.
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

/// Without a branch. What is known of one load must not make a warp wait before the next goes out,
/// and the compiler puts all it can in front of a branch.
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

/// For what every block reads again, weights: the stream of rows is not to push it out of the L1
/// cache.
template <int kWords>
__device__ inline void load_kept_words(const void* from, std::uint32_t (&words)[kWords]) {
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

/// The same for bounds of sequences.
__device__ inline int load_kept_int(const void* from) {
  int value;
  asm volatile("ld.global.L1::evict_last.s32 %0, [%1];" : "=r"(value) : "l"(from));
  return value;
}

__device__ inline void load_kept_int_if(bool wanted, const void* from, int& value) {
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

/// So many rows after `from`: one multiplication, where the compiler would take four instructions.
template <typename T>
__device__ inline T* rows_after(T* from, std::int32_t row_bytes, std::int32_t rows) {
  T* to;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(to) : "r"(row_bytes), "r"(rows), "l"(from));
  return to;
}

/// The same for rows known to the compiler, of which it makes one 64-bit addition each.
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

/// Keeps the compiler from putting off what an address in global memory or a number is computed
/// with.
template <typename T>
__device__ inline void pin(T*& address) {
  asm volatile("" : "+l"(address));
  __builtin_assume(__isGlobal(address));
}
__device__ inline void pin(std::int64_t& number) { asm volatile("" : "+l"(number)); }

/// The same number, but not known to be the same in all lanes. What is loaded from where it leads
/// the assembler would move to uniform registers, and wait for it as soon as it is asked for.
__device__ inline std::uint32_t of_each_lane(std::uint32_t number) {
  std::uint32_t zero;
  asm("shr.u32 %0, %1, 10;" : "=r"(zero) : "r"(threadIdx.x));  // no block has so many threads
  return number + zero;
}

/// What stands in memory while the kernel in front may still be writing it, past the L1 cache,
/// where a load after the wait would find it again.
__device__ inline std::uint32_t load_early(const void* from) {
  std::uint32_t word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
  return word;
}

/// Has the 16-byte units from the one that `from` lies in brought into the L2 cache, in which a
/// write of the kernel in front finds them. One instruction for all of them: a prefetch by each
/// lane took a decode of 64 x 8192 from 3.33 us to 3.47, this to 3.15.
__device__ inline void prefetch(const void* from, std::uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  const std::uint64_t first = reinterpret_cast<std::uint64_t>(from) & ~std::uint64_t{15};
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(first), "r"(bytes & ~15u)
               : "memory");
#endif
}

/// Programmatic dependent launch, overlap.cuh: lets the next kernel of the stream start its blocks,
/// which wait for this one all the same, as soon as all blocks of this one have said so or ended.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Waits until the kernel before has finished and its writes can be seen. Before that no memory may
/// be touched.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace shortconv::cuda
