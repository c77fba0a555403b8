"""Changes of vLLM's layers, once their modules are loaded."""

import inspect
from types import ModuleType
from typing import Dict, List

from shortconv.compat._hooks import (
    ModuleChange,
    Undo,
    require_parameters,
    set_attribute,
    version,
)
from shortconv.compat.vllm import front, gates


def _check_front(module: ModuleType) -> None:
    for name in ("causal_conv1d_fn", "fused_post_conv_prep"):
        if not hasattr(module, name):
            raise ImportError(f"{module.__name__} of {version('vllm')}: has no {name}; expected "
                              "it for the part front of shortconv")
    theirs = module.fused_post_conv_prep
    ours = front.fused_post_conv_prep_of(theirs)
    require_parameters("vllm", "fused_post_conv_prep", theirs, ours, 8)


def _apply_front(module: ModuleType) -> List[Undo]:
    if module.causal_conv1d_fn is front.deferred_conv1d_fn:
        return []
    prep = front.fused_post_conv_prep_of(module.fused_post_conv_prep)
    return [set_attribute(module, "fused_post_conv_prep", prep),
            set_attribute(module, "causal_conv1d_fn", front.deferred_conv1d_fn)]


def _check_gates(module: ModuleType) -> None:
    layer = getattr(module, "ShortConv", None)
    method = getattr(layer, "forward_cuda", None)
    where = f"ShortConv.forward_cuda of {version('vllm')}"
    if method is None:
        raise ImportError(f"{where}: does not exist; expected it for the part gates of shortconv")
    if hasattr(method, "_is_of_shortconv"):
        return
    found = list(inspect.signature(method).parameters)
    if found != ["self", "hidden_states", "output"]:
        raise ImportError(f"{where}: has the parameters {', '.join(found)}; expected self, "
                          "hidden_states, output")
    if not hasattr(method, "__code__"):
        raise ImportError(f"{where}: is {method!r}; expected a Python function")
    names = set(method.__code__.co_names)
    missing, unknown = gates.NEEDED_NAMES - names, names - gates.KNOWN_NAMES
    if missing or unknown:
        raise ImportError(
            f"{where}: does not use {', '.join(sorted(missing)) or 'nothing'} of what shortconv "
            f"reads, and uses {', '.join(sorted(unknown)) or 'nothing'} that it does not know; "
            "install it without the part gates")


def _apply_gates(module: ModuleType) -> List[Undo]:
    layer = module.ShortConv
    if hasattr(layer.forward_cuda, "_is_of_shortconv"):
        return []
    ours = gates.layer_forward(layer.forward_cuda)
    ours._is_of_shortconv = True  # type: ignore[attr-defined]
    return [set_attribute(layer, "forward_cuda", ours)]


_MAMBA = "vllm.model_executor.layers.mamba."
CHANGES: Dict[str, ModuleChange] = {
    "front": ModuleChange((_MAMBA + "gdn.qwen_gdn_linear_attn", _MAMBA + "gdn_linear_attn"),
                          _check_front, _apply_front),
    "gates": ModuleChange((_MAMBA + "short_conv",), _check_gates, _apply_gates),
}
