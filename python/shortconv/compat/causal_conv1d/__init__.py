"""causal-conv1d's functions: `from shortconv.compat.causal_conv1d import causal_conv1d_fn`.

install() makes `import causal_conv1d` find this package and its submodules, so that transformers,
mamba and others use it. All strides and all widths up to 64 are accepted, also where the original
requires channel-last x or multiples of 8. causal_conv1d_fn has gradients.

Source: https://github.com/Dao-AILab/causal-conv1d, the interface of 1.7.
"""

import importlib.util
import sys

from shortconv.compat.causal_conv1d import (
    causal_conv1d_interface,
    causal_conv1d_varlen,
    cpp_functions,
)
from shortconv.compat.causal_conv1d.causal_conv1d_interface import (
    causal_conv1d_fn,
    causal_conv1d_update,
)
from shortconv.compat.causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states

__version__ = "1.7.0"  # of the interface; callers compare it
__all__ = ["causal_conv1d_fn", "causal_conv1d_update", "causal_conv1d_varlen_states", "install"]

_NAME = "causal_conv1d"


def install(replace: bool = False) -> None:
    """Makes `import causal_conv1d` find this package in this process.

    Args:
      replace: do so even if the original is installed.

    Raises:
      ImportError: the original is installed or imported, and replace is False.
    """
    this = sys.modules[__name__]
    if sys.modules.get(_NAME) is this:
        return
    if not replace and (_NAME in sys.modules or importlib.util.find_spec(_NAME) is not None):
        raise ImportError("causal_conv1d: is installed; install(replace=True) replaces it")
    sys.modules[_NAME] = this
    for module in (causal_conv1d_interface, causal_conv1d_varlen, cpp_functions):
        sys.modules[f"{_NAME}.{module.__name__.rpartition('.')[2]}"] = module


def uninstall() -> None:
    """Undoes install(). Code that has imported a function in between keeps it."""
    this = sys.modules[__name__]
    if sys.modules.get(_NAME) is this:
        for name in [one for one in sys.modules if one.partition(".")[0] == _NAME]:
            del sys.modules[name]
