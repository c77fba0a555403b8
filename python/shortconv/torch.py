"""The operators on torch tensors, the convolution with gradients, and shortconv.torch.torch.

short_conv, short_conv_groups and the layer ShortConv1d are for training: nothing is updated in
place.

The other functions are those of shortconv itself, which calls torch's dispatcher where it has to
be: under torch.compile (fullgraph=True and CUDA graphs work), in traces and modes, with subclasses
and gradients. Compiled calls take no stream: they run on torch's current stream. They write their
results and states in place and have no gradients: if inputs require gradients, the backward pass of
the result raises NotImplementedError.
"""

import shortconv
from shortconv._backward import Gradients, backward
from shortconv._layer import ShortConv1d
from shortconv._operators import (
    block_snapshots,
    commit,
    decode,
    forward,
    tree_parents,
    verify,
)
from shortconv._torch import refuse_gradient, run, torch
from shortconv._training import short_conv
from shortconv._training_groups import short_conv_groups

__all__ = ["Gradients", "ShortConv1d", "backward", "block_snapshots", "commit", "decode", "forward",
           "refuse_gradient", "run", "short_conv", "short_conv_groups", "torch", "tree_parents",
           "verify"]

# Compiled code finds the functions in shortconv, which loads them at first use.
shortconv.__getattr__("forward")
