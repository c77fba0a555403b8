"""Helpers of the compat modules."""

import importlib
import sys
from typing import Any, Callable, Dict, Optional, Sequence, Union

from shortconv import _core, _groups, _names
from shortconv._group_arguments import Gates, Group
from shortconv.torch import torch

Tensor = torch.Tensor


def silu_or_none(activation: Union[bool, str, None]) -> Optional[str]:
    """Converts an activation to "silu" or None; "swish" and True mean SiLU, False means none.

    Raises:
      NotImplementedError: activation is anything else.
    """
    if activation == "silu":
        return "silu"
    if activation is None or activation is False:
        return None
    if activation == "swish" or activation is True:
        return "silu"
    raise NotImplementedError(f"activation: is {activation!r}; expected None, 'silu' or 'swish'")


def rolling_states(conv_state: Tensor, width: int, tokens: int) -> Tensor:
    """A view of the pool as the intermediate states of up to `tokens` draft tokens of each slot.

    A call that writes them leaves in each slot the width - 2 inputs before the drafts and then all
    drafts. The next call finds its history at read offset accepted - 1.

    Args:
      conv_state: [slots, channels, columns >= width - 2 + tokens].

    Returns:
      [slots, tokens, width - 1, channels], overlapping.

    Raises:
      ValueError: conv_state has other axes, or too few columns.
    """
    if conv_state is None or conv_state.dim() != 3:
        found = "absent" if conv_state is None else f"of shape {tuple(conv_state.shape)}"
        raise ValueError(f"conv_state: is {found}; expected [slots, channels, columns]")
    slots, channels, columns = conv_state.shape
    if columns < width - 2 + tokens:
        raise ValueError(f"conv_state: has {columns} columns, but width {width} and {tokens} draft "
                         f"tokens need {width - 2 + tokens}")
    slot, channel, column = conv_state.stride()
    return conv_state.as_strided(
        (slots, tokens, width - 1, channels), (slot, column, column, channel))


def has_fast_groups(x: Tensor, weight: Tensor, conv_states: Optional[Tensor]) -> bool:
    """Whether one launch computes a call with groups on packed rows x [tokens, channels]."""
    if not x.is_cuda:
        return True
    return (x.dim() == 2 and x.stride(1) == 1 and x.element_size() == 2 and weight.dtype == x.dtype
            and weight.shape[-1] == 4
            and (conv_states is None or conv_states.dtype == x.dtype))


def convolve_groups(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    conv_states: Optional[Tensor],
    slots: Optional[Tensor],
    query_start_loc: Tensor,
    has_initial_state: Optional[Tensor],
    activation: Optional[str],
    null_slot: Optional[int],
    groups: Sequence[Group],
    gates: Optional[Gates] = None,
) -> _groups.Grouped:
    """forward_groups with states [slots, channels, columns], in the words of the caller.

    Args:
      x: [tokens, columns].
    """
    op = _core.FORWARD | _core.STATE_CHANNELS_FIRST | _core.LONGER_INDICES
    try:
        return _groups._run(
            [op, x, weight, bias, conv_states, slots, query_start_loc, has_initial_state, False,
             activation, null_slot, None], groups, None, gates, None, None, (), True)
    except (ValueError, NotImplementedError) as error:
        raise _names.for_caller(error) from None


def needs_gradient(*tensors: Optional[Tensor]) -> bool:
    """Whether a call with these tensors is differentiated."""
    return torch.is_grad_enabled() and any(
        one is not None and one.requires_grad for one in tensors)


def width_of(weight: Tensor) -> int:
    """The width of a weight [channels, width].

    Raises:
      ValueError: weight has other axes.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight: is of shape {tuple(weight.shape)}; expected [channels, width]")
    return weight.shape[1]


def last_inputs(x: Tensor, bounds: Tensor, count: int) -> Tensor:
    """The last `count` inputs of each sequence, with zeros before its first input.

    Args:
      x: [tokens, channels]; bounds: [sequences + 1] int.

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
    """Replaces functions of a library in all modules loaded so far.

    Args:
      ours: {module name: {function name: our function}}; modules that do not exist are skipped.
      choose: makes the replacement from the original function and ours.

    Returns:
      A function that restores the originals.

    Raises:
      ImportError: none of the modules with these functions was found.
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


def replace_everywhere(replacements: Dict[Function, Function],
                       package: Optional[str] = None) -> Callable[[], None]:
    """Replaces functions in all loaded modules, or in those of a package.

    Returns:
      A function that restores them.
    """
    by_id = {id(original): (original, new) for original, new in replacements.items()}
    done = []
    for module_name, module in list(sys.modules.items()):
        if package is not None and module_name.partition(".")[0] != package:
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in by_id and value is by_id[id(value)][0]:
                setattr(module, name, by_id[id(value)][1])
                done.append((module, name, value))

    def undo() -> None:
        for module, name, value in done:
            setattr(module, name, value)

    return undo
