"""vLLM's Triton kernels (PyPI: vllm), with the metadata that vLLM computes once per step."""


def original():
    from vllm.model_executor.layers.mamba.ops import causal_conv1d as module

    return module


def ours():
    from shortconv.compat import vllm

    return vllm


def metadata_of(b):
    try:
        from vllm.v1.attention.backends.utils import compute_causal_conv1d_metadata
    except ImportError:
        return None
    nums, batch, offsets = compute_causal_conv1d_metadata(b.bounds.cpu(), device=b.x.device)
    return type("Metadata", (), {"nums_dict": nums, "batch_ptr": batch,
                                 "token_chunk_offset_ptr": offsets})()


def prefill(functions, b):
    x, states, metadata = b.x.T, b.state.transpose(1, 2), metadata_of(b)
    return lambda: functions.causal_conv1d_fn(
        x, b.weight, b.bias, states, b.bounds, cache_indices=b.slots, has_initial_state=b.resumed,
        activation="silu", metadata=metadata)


def decode(functions, b):
    states = b.state.transpose(1, 2)
    return lambda: functions.causal_conv1d_update(b.x, states, b.weight, b.bias, "silu",
                                                  conv_state_indices=b.slots)


def front(functions, b):
    """The chain of its Qwen3.5: convolve, then split, norms and gates in one kernel. Interleaved
    rows are unpacked by compiled torch code there, which is not measured."""
    try:
        from vllm.third_party.flash_linear_attention.ops import fused_gdn_prefill_post_conv as post
    except ImportError:
        from vllm.model_executor.layers.fla.ops import fused_gdn_prefill_post_conv as post

    if b.case.is_interleaved:
        return None
    states, metadata, case = b.state.transpose(1, 2), metadata_of(b), b.case

    def call():
        out = functions.causal_conv1d_fn(
            b.x.T, b.weight, b.bias, states, b.bounds, cache_indices=b.slots,
            has_initial_state=b.resumed, activation="silu", metadata=metadata).T
        beta, a = b.ba.chunk(2, -1)
        return post.fused_post_conv_prep(
            out, a.contiguous(), beta.contiguous(), b.a_log, b.dt_bias, case.key_heads,
            case.head_dim, case.head_dim)

    return call
