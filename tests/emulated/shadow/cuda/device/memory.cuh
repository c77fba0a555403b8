// Replaces src/cuda/device/memory.cuh on the emulated device: the same functions without inline
// assembly. Each access must be aligned to the size of the access on the GPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.hpp"

namespace shortconv::cuda {

/// Before the PDL wait the previous kernel may still write what is read, or read what is written.
inline void require_wait() {
  if (!emulated::pdl_waited && !emulated::pdl_overlaps)
    emulated::fail("memory is accessed before the previous kernel is done");
}

inline void require_alignment(const void* address, std::size_t bytes) {
  require_wait();
  if (reinterpret_cast<std::uintptr_t>(address) % bytes == 0) return;
  emulated::fail(bytes == 16  ? "an access of 16 bytes is not aligned to them"
                 : bytes == 8 ? "an access of 8 bytes is not aligned to them"
                 : bytes == 4 ? "an access of 4 bytes is not aligned to them"
                              : "an access of 2 bytes is not aligned to them");
}

template <int kWords>
void load_words(const void* from, std::uint32_t (&words)[kWords]) {
  require_alignment(from, kWords % 4 == 0 ? 16 : kWords % 2 == 0 ? 8 : 4);
  std::memcpy(words, from, sizeof words);
}

template <int kWords>
void load_words_evict_last(const void* from, std::uint32_t (&words)[kWords]) {
  load_words(from, words);
}

template <int kWords>
void store_words(void* to, const std::uint32_t (&words)[kWords]) {
  require_alignment(to, kWords % 4 == 0 ? 16 : kWords % 2 == 0 ? 8 : 4);
  std::memcpy(to, words, sizeof words);
}

template <int kWords>
void store_words_if(bool wanted, void* to, const std::uint32_t (&words)[kWords]) {
  if (wanted) store_words(to, words);
}

inline void load_word_if(bool wanted, const void* from, std::uint32_t& word) {
  if (!wanted) return;
  require_alignment(from, sizeof word);
  std::memcpy(&word, from, sizeof word);
}

inline void load_byte_if(bool wanted, const void* from, std::uint32_t& byte) {
  if (!wanted) return;
  require_wait();
  byte = *static_cast<const std::uint8_t*>(from);
}

inline void load_int_if_evict_last(bool wanted, const void* from, int& value) {
  if (!wanted) return;
  require_alignment(from, sizeof value);
  std::memcpy(&value, from, sizeof value);
}

inline int load_int_evict_last(const void* from) {
  int value = 0;
  load_int_if_evict_last(true, from, value);
  return value;
}

using SharedAddress = char*;
inline SharedAddress shared_address(char* shared) { return shared; }

/// At once: the emulated device does not see a missing wait.
template <int kBytes>
void copy_async(SharedAddress to, const void* from) {
  require_alignment(from, kBytes);
  require_alignment(to, kBytes);
  std::memcpy(to, from, kBytes);
}
template <int kBytes>
void copy_async_first(SharedAddress to, const void* from, int bytes) {
  require_alignment(from, kBytes);
  require_alignment(to, kBytes);
  std::memset(to, 0, kBytes);
  std::memcpy(to, from, static_cast<std::size_t>(bytes));
}
inline void commit_copies() {}
template <int kGroups>
void wait_for_copies() {}

template <int kWords>
void load_shared_words(SharedAddress from, std::uint32_t (&words)[kWords]) {
  require_alignment(from, sizeof words);
  std::memcpy(words, from, sizeof words);
}

template <int kWords>
void store_shared_words(SharedAddress to, const std::uint32_t (&words)[kWords]) {
  require_alignment(to, sizeof words);
  std::memcpy(to, words, sizeof words);
}
template <typename T>
T load_shared_element(SharedAddress from) {
  T element;
  require_alignment(from, sizeof element);
  std::memcpy(&element, from, sizeof element);
  return element;
}
template <typename T>
void store_shared_element(SharedAddress to, const T& element) {
  require_alignment(to, sizeof element);
  std::memcpy(to, &element, sizeof element);
}

template <int kCount>
void store_shared(float* to, const float (&values)[kCount]) {
  require_alignment(to, sizeof values);
  std::memcpy(to, values, sizeof values);
}
template <int kCount>
void load_shared(const float* from, float (&values)[kCount]) {
  require_alignment(from, sizeof values);
  std::memcpy(values, from, sizeof values);
}

/// One block runs at a time. As much as a block of a GPU may have.
inline char* dynamic_shared_memory() {
  alignas(16) static char memory[emulated::kSharedBytes];
  return memory;
}

/// Computed with integers: many addresses are invalid, some computed from null, and never accessed.
template <typename T>
T* rows_after(T* from, std::int32_t row_bytes, std::int32_t rows) {
  const std::int64_t bytes = std::int64_t{row_bytes} * rows;
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(from) +
                              static_cast<std::uintptr_t>(bytes));
}

template <typename T>
T* nth_row(T* from, std::int32_t row_bytes, int row) {
  return rows_after(from, row_bytes, row);
}

template <int kWords>
void copy_words(const std::uint32_t (&from)[kWords], std::uint32_t (&to)[kWords]) {
  std::memcpy(to, from, sizeof from);
}

template <int kWords>
void clear_words(std::uint32_t (&words)[kWords]) {
  std::memset(words, 0, sizeof words);
}

template <typename T>
void opaque(T&) {}

inline std::uint32_t make_nonuniform(std::uint32_t number) { return number; }

inline std::uint32_t load_relaxed(const void* from) {
  std::uint32_t word = 0;
  std::memcpy(&word, from, sizeof word);
  return word;
}

/// Prefetched addresses must be valid: reads both ends for the sanitizer.
inline void prefetch_l2(const void* from, std::uint32_t bytes) {
  const auto first = reinterpret_cast<std::uintptr_t>(from) & ~std::uintptr_t{15};
  const auto* units = reinterpret_cast<const volatile char*>(first);
  if (bytes >= 16) (void)(units[0] + units[(bytes & ~15u) - 1]);
}

// Kernels run one after the other, but must not rely on it.
inline void pdl_launch_dependents() {}
inline void pdl_overlap() { emulated::pdl_overlaps = true; }
inline void pdl_wait() { emulated::pdl_waited = true; }

}  // namespace shortconv::cuda
