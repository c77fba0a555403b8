"""vLLM's causal_conv1d_fn and causal_conv1d_update, and what is around them in its layers.

install() replaces them in an imported vLLM. With the environment variable SHORTCONV_VLLM=1 vLLM
calls it in each of its processes, through its plugins. Parts of it may be chosen by name:

  conv      causal_conv1d_fn and causal_conv1d_update; all other parts need it
  front     Qwen3-Next and Qwen3.5: the convolution of prompts, the split into q, k and v, the norms
            and the gates in one launch
  gates     LFM2: the convolution and the products before and after it in one launch
  metadata  the lists that only vLLM's kernel reads are not computed on the host

Intended differences: rows of padding are zeros (the original leaves them uninitialized); every
negative index is padding, not only null_block_id; an accepted number of 0 reads from column 0;
states at block boundaries are exact at any position of the boundary in a chunk; metadata is not
needed. Cache lines may be omitted: sequence s then has line s, and no line is padding.
"""

import importlib
import logging
import os
import sys
from types import ModuleType
from typing import Any, Callable, Dict, List, Sequence, Tuple

from shortconv.compat._common import Function, Tensor, replace_everywhere
from shortconv.compat.vllm.functions import (
    NULL_BLOCK_ID,
    PAD_SLOT_ID,
    causal_conv1d_fn,
    causal_conv1d_update,
    conv_and_post_conv_prep,
)
from shortconv.compat.vllm.hooks import ImportHook, require_parameters, version
from shortconv.compat.vllm.layers import CHANGES, LayerChange, Undo

__all__ = ["NULL_BLOCK_ID", "PAD_SLOT_ID", "PARTS", "causal_conv1d_fn", "causal_conv1d_update",
           "compute_causal_conv1d_metadata", "conv_and_post_conv_prep", "install", "plugin"]

PARTS = ("conv", "front", "gates", "metadata")

_OPS = "vllm.model_executor.layers.mamba.ops.causal_conv1d"
_METADATA = "vllm.v1.attention.backends.utils"
_logger = logging.getLogger(__name__)


def compute_causal_conv1d_metadata(query_start_loc_p_cpu: Tensor, *,
                                   device: Any) -> Tuple[None, None, None]:
    """Computes nothing: only vLLM's own causal_conv1d_fn reads these lists.

    Returns:
      None for nums_dict, batch_ptr and token_chunk_offset_ptr, as for a batch without prompts.
    """
    return None, None, None


def install(parts: Sequence[str] = PARTS) -> Undo:
    """Replaces vLLM's functions by these in all modules loaded so far.

    Layers that are imported later are changed when they are; those with unknown parameters are left
    as they are, with a warning.

    Args:
      parts: names of PARTS, "conv" among them.

    Returns:
      A function that restores the originals.

    Raises:
      ValueError: parts has an unknown name, or lacks "conv".
      ImportError: vLLM is not installed, has the functions in other modules, or has functions or
        loaded layers with unknown parameters. Nothing has been replaced then.
    """
    unknown = [one for one in parts if one not in PARTS]
    if unknown or "conv" not in parts:
        raise ValueError(f"parts: are {', '.join(parts) or 'none'}; expected conv, and any of "
                         f"{', '.join(PARTS[1:])}, which need it")
    replacements = _replacements(parts)
    changes = {name: change for part, change in CHANGES.items() if part in parts
               for name in change.modules}
    loaded = {name: sys.modules[name] for name in changes if name in sys.modules}
    for name, module in loaded.items():
        changes[name].check(module)
    undo = [replace_everywhere(replacements)]
    for name, module in loaded.items():
        undo += changes[name].apply(module)
    hook = ImportHook({name: _later(change, undo) for name, change in changes.items()})
    sys.meta_path.insert(0, hook)
    _logger.info("%s: shortconv replaces %s", version(), ", ".join(parts))

    def restore() -> None:
        if hook in sys.meta_path:
            sys.meta_path.remove(hook)
        while undo:
            undo.pop()()
        # Modules that were imported in the meantime have ours as well.
        replace_everywhere({ours: theirs for theirs, ours in replacements.items()}, "vllm")

    return restore


def _replacements(parts: Sequence[str]) -> Dict[Function, Function]:
    """{function of vLLM: ours}, checked.

    Raises:
      ImportError: a function is missing or has unknown parameters.
    """
    wanted = [(_OPS, causal_conv1d_fn, 5), (_OPS, causal_conv1d_update, 5)]
    if "metadata" in parts:
        wanted.append((_METADATA, compute_causal_conv1d_metadata, 1))
    replacements = {}
    for module_name, ours, positional in wanted:
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise ImportError(f"{version()}: has no module {module_name} with "
                              f"{ours.__name__} ({error})") from error
        theirs = getattr(module, ours.__name__, None)
        if theirs is None:
            raise ImportError(f"{version()}: has no {ours.__name__} in {module_name}")
        require_parameters(ours.__name__, theirs, ours, positional)
        replacements[theirs] = ours
    return replacements


def _later(change: LayerChange, undo: List[Undo]) -> Callable[[ModuleType], None]:
    """Changes a module that is imported after install()."""
    def on_import(module: ModuleType) -> None:
        try:
            change.check(module)
            undo.extend(change.apply(module))
        except Exception as error:  # the engine goes on with its own layer
            _logger.warning("shortconv does not change a layer: %s", error)

    return on_import


def _parts_of(value: str) -> Tuple[str, ...]:
    """The parts that a value of SHORTCONV_VLLM names."""
    if value in ("", "0"):
        return ()
    return PARTS if value == "1" else tuple(part.strip() for part in value.split(","))


def plugin() -> None:
    """Entry point vllm.general_plugins: calls install() for the parts in SHORTCONV_VLLM.

    1 stands for all parts; 0 or nothing for none; otherwise names of parts, with commas. Never
    raises: what install() refuses is a warning, and vLLM runs its own kernels.
    """
    try:
        parts = _parts_of(os.environ.get("SHORTCONV_VLLM", ""))
        if parts:
            install(parts)
    except Exception as error:
        _logger.warning("SHORTCONV_VLLM: shortconv is not used, vLLM runs its own kernels: %s",
                        error)
