"""What several of the modules here need."""

import sys
from typing import Any, Callable, Dict, Optional

from shortconv import torch as conv
from shortconv.torch import torch

Tensor = torch.Tensor


def silu_or_none(activation: Optional[str]) -> Optional[str]:
    """The activation in this library's words; "swish" is another name of SiLU."""
    if activation is None:
        return None
    if activation in ("silu", "swish"):
        return "silu"
    raise NotImplementedError(f"activation: is {activation!r}; expected None, 'silu' or 'swish'")


def update_all_columns(
    x: Tensor, state: Tensor, weight: Tensor, bias: Optional[Tensor], activation: Optional[str],
    slots: Optional[Tensor], bounds: Optional[Tensor] = None,
) -> Tensor:
    """Resumes sequences, after which all columns of a slot are its newest inputs.

    Args:
      x: [sequences, tokens, channels], or [tokens, channels] with bounds [sequences + 1].
      state: [slots, columns >= width - 1, channels]; the history is its last columns.
    """
    columns, history = state.shape[1], weight.shape[1] - 1
    where = {"state": state, "read_slots": slots, "query_start_loc": bounds}
    if columns == history:
        return conv.forward(x, weight, bias, initial_state=True, activation=activation, **where)
    # Outputs come from a call that writes no state; a convolution of columns + 1 taps keeps as many
    # inputs, and nobody reads what it computes.
    out = conv.verify(x, weight, bias, state_base=columns - history, activation=activation, **where)
    taps = weight.new_zeros(()).expand(weight.shape[0], columns + 1)
    conv.forward(x, taps, initial_state=True, **where)
    return out


def last_inputs(x: Tensor, bounds: Tensor, count: int, before: Optional[Tensor] = None) -> Tensor:
    """The last `count` inputs of each sequence, zeros before its first.

    Args:
      x: [tokens, channels]; bounds: [sequences + 1].
      before: [sequences, columns, channels]: what the sequences had before, newest last.

    Returns:
      [sequences, count, channels].
    """
    begin, end = bounds[:-1, None].long(), bounds[1:, None].long()
    rows = end + torch.arange(-count, 0, device=x.device)
    inside = rows >= begin
    found = torch.zeros((), dtype=x.dtype, device=x.device)
    if before is not None:
        columns = before.shape[1]
        back = rows - begin + columns  # column of `before`, if that far back it reaches
        index = back.clamp(0, columns - 1)[..., None].expand(-1, -1, x.shape[1])
        found = torch.where((back >= 0)[..., None], before.gather(1, index), found)
    if x.shape[0] == 0:
        return found.expand(len(bounds) - 1, count, x.shape[1]).contiguous()
    return torch.where(inside[..., None], x[rows.clamp(0, x.shape[0] - 1)], found)


Function = Callable[..., Any]


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
