"""Short causal depthwise convolution for serving.

    import shortconv
    y = shortconv.forward(x, weight, bias, state=state, query_start_loc=bounds, activation="silu")
    y = shortconv.decode(x, weight, bias, state=state, read_slots=slots, activation="silu")

shortconv.torch has the same functions for torch.compile, shortconv.reference computes them in
double precision, and shortconv.compat has the functions of other libraries.
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
    """Capabilities of this build on this machine.

    Returns:
      A dict with these keys.
      widths: list of int, widths with specialized kernels. model_widths: those of them for which a
        GPU has all kernels. max_width: int, the limit of the general path.
      dtypes, activations, epilogues, padded_rows: lists of names, as used in calls and messages.
      backends: list of {"name", "available", "detail"}; detail is the instruction set, the device,
        or the reason why the backend is not available.
    """
    return json.loads(_core.capabilities())
