"""SGLang's Triton kernels (PyPI: sglang); the lengths on the host cost it no time here."""


def original():
    try:
        from sglang.kernels.ops.mamba import causal_conv1d_triton as module
    except ImportError:
        from sglang.srt.layers.attention.mamba import causal_conv1d_triton as module
    return module


def ours():
    from shortconv.compat import sglang

    return sglang


def prefill(functions, b):
    x, states, lengths = b.x.T, b.state.transpose(1, 2), list(b.case.lengths)
    return lambda: functions.causal_conv1d_fn(
        x, b.weight, b.bias, states, b.bounds, lengths, cache_indices=b.slots,
        has_initial_state=b.resumed, activation="silu")


def decode(functions, b):
    states = b.state.transpose(1, 2)
    return lambda: functions.causal_conv1d_update(b.x, states, b.weight, b.bias, "silu",
                                                  conv_state_indices=b.slots)
