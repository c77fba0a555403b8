"""Workspaces of backward calls with torch tensors.

Without a workspace the core answers with the bytes that it needs, and does not run. They follow
from shapes: they are kept, and a call with known shapes calls the core once instead of twice. What
is kept need not be right: the core refuses a workspace that is too small, and is asked again.
"""

import sys
from typing import Any, Callable, Dict, Sequence, Tuple

from shortconv import _core


class Workspace:
    """Of calls with the same shapes."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0  # bytes; 0: none, or not known yet

    def run(self, core: Callable[..., int], values: Sequence[Any], x: Any) -> None:
        """core(*values), which end with arguments by name, with a workspace on the device of x."""
        uint8 = sys.modules["torch"].uint8  # loaded, as x is one of its tensors
        if self.size:
            try:
                core(*values, "workspace", x.new_empty(self.size, dtype=uint8))
                return
            except ValueError as error:
                if not str(error).startswith("workspace: has "):
                    raise
        needed = core(*values)
        if needed:
            core(*values, "workspace", x.new_empty(needed, dtype=uint8))
            self.size = needed


_known: Dict[Tuple[Any, ...], Workspace] = {}
_MOST_KNOWN = 1000
_FREQUENT = 8  # arguments of _core.backward before those by name


def run_backward(*values: Any) -> None:
    """_core.backward, with a workspace if it needs one.

    Only sums of weights and biases do, on a GPU.
    """
    x, weight, grad_weight, grad_bias = values[1], values[2], values[5], values[6]
    rare = values[_FREQUENT::2]  # names
    if (grad_weight is None and grad_bias is None) or "workspace" in rare:
        Workspace().run(_core.backward, values, x)
        return
    bounds = None
    if "query_start_loc" in rare:
        bounds = values[_FREQUENT + 2 * rare.index("query_start_loc") + 1]
    # What is no tensor has no shape: the core refuses it.
    key = (x.shape, getattr(weight, "shape", None), getattr(bounds, "shape", None), x.is_cuda)
    workspace = _known.get(key)
    if workspace is not None:
        workspace.run(_core.backward, values, x)
        return
    workspace = Workspace()
    workspace.run(_core.backward, values, x)
    if workspace.size:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = workspace
