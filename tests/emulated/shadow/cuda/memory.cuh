// In place of src/cuda/memory.cuh on the emulated device: the same functions without inline
// assembly. Each access has to be aligned to all that it takes in one instruction there.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.hpp"

namespace shortconv::cuda {

/// Before that the kernel in front may still write what is read, or read what is written.
inline void require_wait() {
  if (!emulated::waited) emulated::fail("memory is touched before the kernel in front is done");
}

inline void require_alignment(const void* address, std::size_t bytes) {
  require_wait();
  if (reinterpret_cast<std::uintptr_t>(address) % bytes == 0) return;
  emulated::fail(bytes == 16  ? "an access of 16 bytes is not aligned to them"
                 : bytes == 8 ? "an access of 8 bytes is not aligned to them"
                              : "an access of 4 bytes is not aligned to them");
}

template <int kWords>
void load_words(const void* from, std::uint32_t (&words)[kWords]) {
  require_alignment(from, kWords % 4 == 0 ? 16 : kWords % 2 == 0 ? 8 : 4);
  std::memcpy(words, from, sizeof words);
}

template <int kWords>
void load_kept_words(const void* from, std::uint32_t (&words)[kWords]) {
  load_words(from, words);
}

template <int kWords>
void store_words(void* to, const std::uint32_t (&words)[kWords]) {
  require_alignment(to, kWords % 4 == 0 ? 16 : kWords % 2 == 0 ? 8 : 4);
  std::memcpy(to, words, sizeof words);
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

inline void load_kept_int_if(bool wanted, const void* from, int& value) {
  if (!wanted) return;
  require_alignment(from, sizeof value);
  std::memcpy(&value, from, sizeof value);
}

inline int load_kept_int(const void* from) {
  int value = 0;
  load_kept_int_if(true, from, value);
  return value;
}

/// Of addresses that are only computed and lead nowhere there are many, from null among them.
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
void pin(T&) {}

inline std::uint32_t of_each_lane(std::uint32_t number) { return number; }

inline std::uint32_t load_early(const void* from) {
  std::uint32_t word = 0;
  std::memcpy(&word, from, sizeof word);
  return word;
}

/// What is brought into a cache has to be memory too: the sanitizer sees both ends read.
inline void prefetch(const void* from, std::uint32_t bytes) {
  const auto first = reinterpret_cast<std::uintptr_t>(from) & ~std::uintptr_t{15};
  const auto* units = reinterpret_cast<const volatile char*>(first);
  if (bytes >= 16) (void)(units[0] + units[(bytes & ~15u) - 1]);
}

// One kernel is done before the next one starts, but may not rely on it.
inline void let_next_start() {}
inline void wait_for_previous() { emulated::waited = true; }

}  // namespace shortconv::cuda
