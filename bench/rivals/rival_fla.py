"""flash-linear-attention (PyPI: flash-linear-attention), packed, without states."""

import functools
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch

COMPILED_PARTS = 4  # compile_ahead.py: one for each number of warps
# Not those with Gluon, whatever the environment says: they are a rival of their own.
ENVIRONMENT = {"FLA_CONV_GLUON": "0", "FLA_GLUON": "0"}


def original():
    from fla.modules import causal_conv1d as module

    return module


def ours():
    from shortconv.compat import fla

    return fla


@functools.lru_cache(maxsize=1)
def bounds_of(lengths, device):
    """The same tensors for all buffers of a case: it keeps what it derives from the last few."""
    if len(lengths) == 1:
        return None, None
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return bounds.to(device), bounds


@contextmanager
def tuned_again():
    """The autotuner chooses configurations for the calls in this context and then forgets them."""
    from fla.modules.causal_conv1d import ops

    with ExitStack() as context:
        for kernel in (ops.causal_conv1d_fwd_kernel, ops.causal_conv1d_bwd_kernel):
            context.enter_context(mock.patch.object(kernel.fn, "cache", {}))
            context.enter_context(mock.patch.object(kernel.fn, "cache_results", False))
        yield


def convolution(functions, b):
    """The call as a function of x [1, tokens, channels]."""
    bounds, bounds_cpu = bounds_of(tuple(b.case.lengths), b.weight.device)
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


def front(functions, b):
    """The chain of its GatedDeltaNet, with one convolution for q, k and v, and without states."""
    from fla.modules.l2norm import l2norm_fwd

    if b.case.is_interleaved:
        return None
    convolve = convolution(functions, b)

    def call():
        out = convolve(b.x[None])
        out = (out[0] if isinstance(out, tuple) else out)[0]
        beta, a = b.ba.float().chunk(2, -1)
        q, k, v = b.split(out)
        norms = [l2norm_fwd(one.contiguous(), 1e-6)[0] for one in (q, k)]
        g = -b.a_log.exp() * torch.nn.functional.softplus(a + b.dt_bias.float())
        return (*norms, v.contiguous(), g, beta.sigmoid())

    return call
