"""Short causal depthwise convolution for serving.

    import shortconv
    y = shortconv.forward(x, weight, bias, state=state, query_start_loc=bounds, activation="silu")
    y = shortconv.decode(x, weight, bias, state=state, read_slots=slots, activation="silu")

shortconv.torch has the same functions for torch.compile, shortconv.reference in double precision,
shortconv.compat those of other libraries.
"""

import json
from typing import Any, Dict

from shortconv import _core, reference
from shortconv._operators import (
    block_snapshots,
    commit,
    decode,
    forward,
    tree_parents,
    verify,
)

__version__ = _core.version()
__all__ = [
    "block_snapshots", "capabilities", "commit", "decode", "forward", "reference",
    "tree_parents", "verify"]


def capabilities() -> Dict[str, Any]:
    """What this build can do here.

    Returns:
      widths: list of int, those with kernels of their own; model_widths: those of them for which
        a GPU has all kernels; max_width: the general path's limit.
      dtypes, activations, epilogues, padded_rows: lists of names, as calls and messages have them.
      backends: list of {"name", "available", "detail"}: instruction set or device, or why not.
    """
    return json.loads(_core.capabilities())
