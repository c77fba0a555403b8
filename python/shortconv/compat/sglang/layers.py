"""Changes of SGLang's backend of the gated delta net, once its modules are loaded."""

from types import ModuleType
from typing import Any, Dict, List, Tuple

from shortconv.compat._common import Function
from shortconv.compat._hooks import (
    ModuleChange,
    Undo,
    require_parameters,
    set_attribute,
    version,
)
from shortconv.compat.sglang import front


def _function_of(module: ModuleType, name: str) -> Function:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise ImportError(f"{module.__name__} of {version('sglang')}: has no {name}; expected it "
                          "for the part front of shortconv")
    return found  # type: ignore[no-any-return]


def _check_backend(module: ModuleType) -> None:
    convolution = _function_of(module, "causal_conv1d_fn")
    if getattr(convolution, "__name__", None) != "causal_conv1d_fn":
        raise ImportError(
            f"causal_conv1d_fn in {module.__name__} of {version('sglang')}: is {convolution!r}; "
            "expected the function of this name that the part conv of shortconv replaces")
    gating = _function_of(module, "fused_gdn_gating")
    require_parameters("sglang", "fused_gdn_gating", gating, front.fused_gdn_gating_of(gating), 4)
    extend = _function_of(module, "GDNKernelDispatcher.extend")
    require_parameters("sglang", "GDNKernelDispatcher.extend", extend, front.extend_of(extend), 6)
    split = getattr(module, "fused_qkv_split_gdn_prefill", None)  # older versions lack it
    if split is not None:
        require_parameters("sglang", "fused_qkv_split_gdn_prefill", split,
                           front.fused_qkv_split_gdn_prefill_of(split), 7)


def _apply_backend(module: ModuleType) -> List[Undo]:
    if hasattr(module.causal_conv1d_fn, "is_deferred"):
        return []
    makers = {"causal_conv1d_fn": front.deferred_conv1d_fn_of,
              "fused_gdn_gating": front.fused_gdn_gating_of,
              "fused_qkv_split_gdn_prefill": front.fused_qkv_split_gdn_prefill_of}
    undo = [set_attribute(module, name, make(getattr(module, name)))
            for name, make in makers.items() if hasattr(module, name)]
    kernels = module.GDNKernelDispatcher
    return [*undo, set_attribute(kernels, "extend", front.extend_of(kernels.extend))]


def _check_delta_rule(module: ModuleType) -> None:
    rule = _function_of(module, "chunk_gated_delta_rule")
    require_parameters("sglang", "chunk_gated_delta_rule", rule,
                       front.chunk_gated_delta_rule_of(rule), 5)


def _apply_delta_rule(module: ModuleType) -> List[Undo]:
    if hasattr(module.chunk_gated_delta_rule, "is_deferred"):
        return []
    ours = front.chunk_gated_delta_rule_of(module.chunk_gated_delta_rule)
    return [set_attribute(module, "chunk_gated_delta_rule", ours)]


_LINEAR = "sglang.srt.layers.attention.linear."
CHANGES: Dict[str, Tuple[ModuleChange, ...]] = {
    "front": (ModuleChange((_LINEAR + "kernels.gdn_triton",), _check_delta_rule, _apply_delta_rule),
              ModuleChange((_LINEAR + "gdn_backend",), _check_backend, _apply_backend)),
}
