"""What several of the modules here need."""

import importlib
import sys
from typing import Any, Callable, Dict, Optional, Union

from shortconv.torch import torch

Tensor = torch.Tensor


def silu_or_none(activation: Union[bool, str, None]) -> Optional[str]:
    """The activation in this library's words; "swish" is another name of SiLU, and so is True."""
    if activation == "silu":
        return "silu"
    if activation is None or activation is False:
        return None
    if activation == "swish" or activation is True:
        return "silu"
    raise NotImplementedError(f"activation: is {activation!r}; expected None, 'silu' or 'swish'")


def rolling_windows(state: Tensor, width: int, tokens: int) -> Tensor:
    """The pool's own columns as the windows of up to `tokens` draft tokens of each slot.

    With them as windows, a slot afterwards holds the width - 2 inputs before the drafts and then
    all drafts, so that accepted - 1 is the next call's read offset.

    Args:
      state: [slots, channels, columns].

    Returns:
      [slots, tokens, width - 1, channels], overlapping.
    """
    slots, channels, columns = state.shape
    if columns < width - 2 + tokens:
        raise ValueError(f"state: has {columns} columns, but width {width} and {tokens} draft "
                         f"tokens need {width - 2 + tokens}")
    slot, channel, column = state.stride()
    return state.as_strided((slots, tokens, width - 1, channels), (slot, column, column, channel))


def last_inputs(x: Tensor, bounds: Tensor, count: int) -> Tensor:
    """The last `count` inputs of each sequence, zeros before its first.

    Args:
      x: [tokens, channels]; bounds: [sequences + 1].

    Returns:
      [sequences, count, channels].
    """
    begin, end = bounds[:-1, None].long(), bounds[1:, None].long()
    rows = end + torch.arange(-count, 0, device=x.device)
    if x.shape[0] == 0:
        return x.new_zeros(len(bounds) - 1, count, x.shape[1])
    none = torch.zeros((), dtype=x.dtype, device=x.device)
    return torch.where((rows >= begin)[..., None], x[rows.clamp(0, x.shape[0] - 1)], none)


Function = Callable[..., Any]


def install_functions(
    ours: Dict[str, Dict[str, Function]],
    choose: Callable[[Function, Function], Function] = lambda original, function: function,
) -> Callable[[], None]:
    """Puts functions in the place of a library's, in all modules loaded by then.

    Args:
      ours: by name of module, by name of function; modules that do not exist are passed over.
      choose: what takes the place of an original, given that and ours.

    Returns:
      A function that undoes it.

    Raises:
      ImportError: none of the modules is there.
    """
    replacements = {}
    for module_name, functions in ours.items():
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        for name, function in functions.items():
            if hasattr(module, name):
                original = getattr(module, name)
                replacements[original] = choose(original, function)
    if not replacements:
        raise ImportError(f"{next(iter(ours)).partition('.')[0]}: none of its modules with these "
                          f"functions was found ({', '.join(ours)})")
    return replace_everywhere(replacements)


def replace_everywhere(replacements: Dict[Function, Function]) -> Callable[[], None]:
    """Puts functions in the place of others in all loaded modules; what it returns undoes it."""
    by_id = {id(original): (original, new) for original, new in replacements.items()}
    done = []
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in by_id and value is by_id[id(value)][0]:
                setattr(module, name, by_id[id(value)][1])
                done.append((module, name, value))

    def undo() -> None:
        for module, name, value in done:
            setattr(module, name, value)

    return undo
