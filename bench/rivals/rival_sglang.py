"""SGLang's Triton kernels (PyPI: sglang); the lengths on the host and its list of blocks, which it
makes once per step, cost it no time here."""

import torch


def original():
    try:
        from sglang.kernels.ops.mamba import causal_conv1d_triton as module
    except ImportError:
        from sglang.srt.layers.attention.mamba import causal_conv1d_triton as module
    return module


def ours():
    from shortconv.compat import sglang

    return sglang


def blocks_of(functions, b):
    """The list of blocks of tokens, in versions that have one. Its layers make it where more than
    three quarters of the grid would be empty."""
    size = getattr(functions, "CAUSAL_CONV1D_FWD_BLOCK_M", None)
    counts = [-(-length // size) for length in b.case.lengths] if size else []
    if not counts or len(counts) * max(counts) <= 4 * sum(counts):
        return {}
    pairs = [(index, block) for index, count in enumerate(counts) for block in range(count)]
    return {"block_table": torch.tensor(pairs, dtype=torch.int32, device=b.x.device)}


def prefill(functions, b):
    x, states, lengths = b.x.T, b.state.transpose(1, 2), list(b.case.lengths)
    blocks = blocks_of(functions, b)
    return lambda: functions.causal_conv1d_fn(
        x, b.weight, b.bias, states, b.bounds, lengths, cache_indices=b.slots,
        has_initial_state=b.resumed, activation="silu", **blocks)


def decode(functions, b):
    states = b.state.transpose(1, 2)
    return lambda: functions.causal_conv1d_update(b.x, states, b.weight, b.bias, "silu",
                                                  conv_state_indices=b.slots)


def front(functions, b):
    """The chain of its Qwen3-Next and Qwen3.5: unpack interleaved rows, convolve, split, norms of q
    and k, gates. beta is rounded to bf16."""
    from sglang.kernels.ops.attention import triton_gdn_fused_proj as projection
    from sglang.kernels.ops.attention.fla.l2norm import l2norm_fwd
    from sglang.kernels.ops.attention.linear.fused_gdn_gating import fused_gdn_gating

    states, lengths = b.state.transpose(1, 2), list(b.case.lengths)
    blocks = blocks_of(functions, b)
    heads, sizes = (b.case.key_heads, b.case.value_heads), (b.case.head_dim, b.case.head_dim)
    unpack = (projection.fused_qkvzba_split_reshape_cat if b.case.is_interleaved
              else projection.qwen3_5_gdn_prefill_projection_views)

    def call():
        x, _, beta, a = unpack(b.qkvz, b.ba, *heads, *sizes)
        out = functions.causal_conv1d_fn(
            x.T, b.weight, b.bias, states, b.bounds, lengths, cache_indices=b.slots,
            has_initial_state=b.resumed, activation="silu", **blocks).T
        if out.shape[1] <= 8192:  # as its layer decides
            q, k, v = projection.fused_qkv_split_gdn_prefill(out, heads[0], *heads, sizes[0],
                                                             *sizes)
        else:
            q, k, v = (part.contiguous() for part in b.split(out))
        g, beta = fused_gdn_gating(b.a_log, a, beta, b.dt_bias)
        return l2norm_fwd(q, 1e-6), l2norm_fwd(k, 1e-6), v, g, beta

    return call
