"""flash-linear-attention (PyPI: flash-linear-attention), packed, without states."""


def original():
    from fla.modules import causal_conv1d as module

    return module


def ours():
    from shortconv.compat import fla

    return fla


def convolution(functions, b):
    """The call as a function of x [1, tokens, channels]."""
    bounds = b.bounds.long() if len(b.case.lengths) > 1 else None
    bounds_cpu = None if bounds is None else bounds.cpu()
    return lambda x: functions.causal_conv1d(x, b.weight, b.bias, activation="silu",
                                             cu_seqlens=bounds, cu_seqlens_cpu=bounds_cpu)


def prefill(functions, b):
    x, call = b.x[None], convolution(functions, b)
    return lambda: call(x)


def decode(functions, b):
    cache = b.x.new_zeros(*b.x.shape, b.weight.shape[1])
    return lambda: functions.causal_conv1d_update(b.x, cache, weight=b.weight, bias=b.bias,
                                                  activation="silu")


def training(functions, b):
    call = convolution(functions, b)

    def convolve():
        out = call(b.x[None])  # in each call, as in rival_causal_conv1d.py
        return (out[0] if isinstance(out, tuple) else out).squeeze(0)

    return convolve
