"""causal-conv1d (PyPI), channel-last; several sequences by seq_idx, therefore without states."""


def original():
    import causal_conv1d

    return causal_conv1d


def ours():
    from shortconv.compat import causal_conv1d

    return causal_conv1d


def prefill(functions, b):
    x, seq_idx = b.x[None].transpose(1, 2), b.seq_idx if len(b.case.lengths) > 1 else None
    return lambda: functions.causal_conv1d_fn(x, b.weight, b.bias, seq_idx=seq_idx,
                                              activation="silu")


def decode(functions, b):
    state = b.state.transpose(1, 2)
    return lambda: functions.causal_conv1d_update(b.x, state, b.weight, b.bias, "silu",
                                                  conv_state_indices=b.slots)


def training(functions, b):
    # Each call makes the view of x: autograd runs the backward pass of a view on the stream that
    # made it, and a graph captures only its own stream.
    return lambda: prefill(functions, b)().transpose(1, 2).squeeze(0)
