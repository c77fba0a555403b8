"""Forward and backward pass of a rival, and how far its gradients are from ours."""

import os
from contextlib import AbstractContextManager
from typing import Any, Callable, Dict, Optional, Sequence
from unittest import mock

import torch
from cases import Buffers

Gradients = Sequence[torch.Tensor]


def call(rival: Any, functions: Any, buffers: Buffers) -> Optional[Callable[[], Gradients]]:
    """A function that makes both passes and returns the gradients of x [tokens, channels] and
    weight [channels, width]; None if the rival has none for this case."""
    x, weight = buffers.x.requires_grad_(), buffers.weight.requires_grad_()
    with torch.enable_grad():
        convolve = rival.training(functions, buffers) if hasattr(rival, "training") else None
    if convolve is None:
        return None

    def both_passes() -> Gradients:
        with torch.enable_grad():
            return torch.autograd.grad(convolve(), (x, weight), buffers.grad_out)

    return both_passes


def environment(rival: Any) -> AbstractContextManager:
    """Sets the environment variables by which a rival chooses its kernels."""
    return mock.patch.dict(os.environ, getattr(rival, "ENVIRONMENT", {}))


def difference(rival: Any, functions: Any, buffers: Buffers) -> Dict[str, float]:
    """The largest difference of a rival's gradients from ours, relative to 1 or to the gradient."""
    import rival_shortconv as ours

    expected = call(ours, ours.original(), buffers)()
    found = call(rival, functions, buffers)()
    largest = 0.0
    for one, other in zip(found, expected):
        error = (one.float() - other.float()).abs() / other.float().abs().clamp(min=1)
        largest = max(largest, float(error.nan_to_num(nan=float("inf")).max()))
    return {"difference": largest}
