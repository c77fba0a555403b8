"""The operators on torch tensors, and shortconv.torch.torch.

The functions are those of shortconv itself, which calls torch's dispatcher where it has to be:
under torch.compile (fullgraph=True and CUDA graphs work), in traces and modes, with subclasses and
gradients. Compiled calls take no stream: they run on torch's current stream.

There are no gradients yet. If inputs require gradients, the backward pass of the output raises
NotImplementedError.
"""

import shortconv
from shortconv._operators import (
    block_snapshots,
    commit,
    decode,
    forward,
    tree_parents,
    verify,
)
from shortconv._torch import refuse_gradient, run, torch

__all__ = ["block_snapshots", "commit", "decode", "forward", "refuse_gradient", "run", "torch",
           "tree_parents", "verify"]

# Compiled code finds the functions in shortconv, which loads them at first use.
shortconv.__getattr__("forward")
