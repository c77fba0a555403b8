// Types, strides, sizes and addresses of a call that decide which kernels can compute it and how
// they access its memory.
#pragma once

#include <cstdint>

#include "cuda/kernel_params.hpp"
#include "cuda/launch_params.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::cuda {

/// `of` is a power of two; a division would be slower.
[[nodiscard]] constexpr bool is_multiple(std::int64_t value, std::int64_t of) {
  return (value & (of - 1)) == 0;
}

/// Beside rows of 16 bits.
[[nodiscard]] bool has_f32_states(const Problem& p);
/// Whether the state has x's type or is fp32.
[[nodiscard]] bool has_sized_types(const Problem& p);

/// Whether x, out and state have one type; fp32 states next to 16-bit rows count too.
[[nodiscard]] bool has_one_type(const Problem& p);

/// Whether all sequences have the same number of tokens, known to the host.
[[nodiscard]] bool is_dense(const Problem& p);
/// Whether that is one token.
[[nodiscard]] bool has_single_tokens(const Problem& p);

/// Rows of x, out and gates are whole groups of `group` adjacent channels.
[[nodiscard]] bool is_token_major(const Problem& p, std::int64_t group);

/// Whether counts and row strides fit into the 31 bits of KernelParams. Offsets have 64.
[[nodiscard]] bool is_countable(const Problem& p);

/// Columns of a slot that are read and written together.
[[nodiscard]] std::int64_t window_columns(const Problem& p);

/// Elements of the vectors in which windows of `group` channels are moved, see load_words.
[[nodiscard]] std::int64_t run_vector(std::int64_t columns, std::int64_t group, DType dtype);

/// How threads with `group` channels access states, and intermediate states.
[[nodiscard]] StateAccess state_access(const Problem& p, std::int64_t group);
[[nodiscard]] StateAccess intermediate_access(const Problem& p, std::int64_t group);

/// Bytes that addresses have to be multiples of.
struct Alignment {
  std::uint32_t rows = 1;  // of x, out and gates
  std::uint32_t state = 1, intermediate_states = 1;
};

[[nodiscard]] bool has_aligned_rows(const Alignment& needed, const TensorPointers& pointers);
/// Removes what the alignment of the other addresses does not allow.
void restrict_to_alignment(const Alignment& needed, const TensorPointers& pointers,
                           LaunchParams& launch);

}  // namespace shortconv::cuda
