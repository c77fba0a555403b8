"""Short causal depthwise convolution for serving and training.

    import shortconv
    y = shortconv.forward(x, weight, bias, state=state, query_start_loc=bounds, activation="silu")
    y = shortconv.decode(x, weight, bias, state=state, read_slots=slots, activation="silu")

forward_groups and decode_groups write q, k, v and so on to arrays of their own, normalized if
wanted, with the gates of a delta rule; shortconv.models has the groups of known layers.
shortconv.torch has the same functions for torch.compile, and the convolution with gradients.
shortconv.reference computes them in double precision, and shortconv.compat has the functions of
other libraries.
"""

from typing import TYPE_CHECKING, Any, Dict, List

if TYPE_CHECKING:
    from shortconv import models, reference
    from shortconv._backward import Gradients, backward
    from shortconv._backward_groups import GroupedGradients, backward_groups
    from shortconv._group_arguments import Gates, Group, HeadMap
    from shortconv._groups import (
        Grouped,
        decode_groups,
        delta_gates,
        forward_groups,
        l2_norm,
    )
    from shortconv._operators import (
        block_snapshots,
        commit,
        decode,
        forward,
        tree_parents,
        verify,
    )

    __version__: str

__all__ = [
    "Gates", "Gradients", "Group", "Grouped", "GroupedGradients", "HeadMap", "backward",
    "backward_groups", "block_snapshots", "capabilities", "commit", "decode", "decode_groups",
    "delta_gates", "forward", "forward_groups", "l2_norm", "models", "reference", "tree_parents",
    "verify"]


def __getattr__(name: str) -> Any:
    """Loads the core at first use: apache-tvm-ffi imports numpy and, if it is installed, torch."""
    if name not in __all__ and name != "__version__":
        raise AttributeError(f"module 'shortconv' has no attribute {name!r}")
    import importlib

    core, models, reference, *public = (
        importlib.import_module(f"shortconv.{module}")
        for module in ("_core", "models", "reference", "_operators", "_backward",
                       "_backward_groups", "_group_arguments", "_groups"))
    functions = {one: getattr(module, one) for module in public
                 for one in __all__ if hasattr(module, one)}
    globals().update(functions, models=models, reference=reference, __version__=core.version())
    return globals()[name]


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__, "__version__"})


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
    import json

    from shortconv import _core

    known: Dict[str, Any] = json.loads(_core.capabilities())
    return known
