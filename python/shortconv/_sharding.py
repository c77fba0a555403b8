"""How DTensors may be sharded: by channels, and dense batches by sequences.

Source: https://docs.pytorch.org/docs/stable/distributed.tensor.html, register_sharding.
"""

import functools
import importlib
import sys
from typing import Any, List, Optional, Sequence, Tuple

from shortconv._torch import torch

_INPUTS = 6  # x to output_gate

Placements = List[Any]
Shardings = List[Tuple[Placements, Placements]]


def register_if_imported() -> None:
    """Registers the operators of _training if torch.distributed.tensor is imported, once."""
    if "torch.distributed.tensor" in sys.modules:
        _register()


@functools.lru_cache(maxsize=None)
def _register() -> None:
    placements = importlib.import_module("torch.distributed.tensor")
    Partial, Replicate, Shard = placements.Partial, placements.Replicate, placements.Shard
    register = importlib.import_module("torch.distributed.tensor.experimental").register_sharding

    def inputs(tensors: Sequence[Any], by: Optional[str]) -> Placements:
        """Of x, weight, bias, initial_state, both gates, query_start_loc and seq_idx."""
        x = tensors[0]
        if by == "channels":
            rows = Shard(x.ndim - 1)
            all_of_them = [rows, Shard(0), Shard(0), Shard(2), rows, rows, Replicate(), Replicate()]
        elif by == "sequences":
            rows = Shard(0)
            all_of_them = [rows, Replicate(), Replicate(), rows, rows, rows, Replicate(), rows]
        else:
            all_of_them = [Replicate()] * len(tensors)
        return [None if one is None else place for one, place in zip(tensors, all_of_them)]

    def ways(x: Any, query_start_loc: Any) -> List[Optional[str]]:
        dense = x.ndim == 3 and query_start_loc is None
        return [None, "channels", "sequences"] if dense else [None, "channels"]

    def forward(*arguments: Any) -> Shardings:
        tensors, options, final = arguments[:8], arguments[8:], arguments[-1]
        shardings: Shardings = []
        for by in ways(tensors[0], tensors[6]):
            placed = inputs(tensors, by)
            state = {None: Replicate(), "channels": Shard(2), "sequences": Shard(0)}[by]
            outputs = [placed[0], state if final else Replicate()]
            shardings.append((outputs, [*placed, *[None] * len(options)]))
        return shardings

    def backward(grad_out: Any, grad_final: Any, needed: Any, *arguments: Any) -> Shardings:
        tensors, options = arguments[:8], arguments[8:]
        shardings: Shardings = []
        for by in ways(tensors[0], tensors[6]):
            placed = inputs(tensors, by)
            state = {None: Replicate(), "channels": Shard(2), "sequences": Shard(0)}[by]
            given = [None if grad_out is None else placed[0],
                     None if grad_final is None else state, None]
            # The gradients of weights are sums over all sequences.
            sums = [Partial() if by == "sequences" and i in (1, 2) else placed[i]
                    for i in range(_INPUTS)]
            outputs = [place if wanted else Replicate() for place, wanted in zip(sums, needed)]
            shardings.append((outputs, [*given, *placed, *[None] * len(options)]))
        return shardings

    operators = torch.ops.shortconv
    register(operators.short_conv.default)(forward)
    register(operators.short_conv_backward.default)(backward)
