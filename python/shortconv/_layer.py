"""The convolution as a layer of torch."""

import math
from typing import Any, Optional, Tuple, Union

from shortconv._torch import torch
from shortconv._training import short_conv

Tensor = torch.Tensor


class ShortConv1d(torch.nn.Module):
    """A short causal depthwise convolution over [batch, tokens, channels] or packed rows.

    Args:
      channels: number of channels; each has its own taps.
      width: number of taps, 2 to 64.
      bias: whether there is a bias.
      activation: None or "silu".
      residual: add the token's own input to the result of the activation.
      dilation: tokens from one tap to the next.
      device, dtype: of the parameters, as in torch.nn.

    Attributes:
      weight: [channels, width]; the last tap multiplies the current token. It is the weight
        [channels, 1, width] of torch.nn.Conv1d with groups=channels, without the middle axis.
      bias: [channels] or None.
    """

    bias: Optional[Tensor]

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        bias: bool = True,
        activation: Optional[str] = None,
        residual: bool = False,
        dilation: int = 1,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.width = width
        self.activation = activation
        self.residual = residual
        self.dilation = dilation
        self.weight = torch.nn.Parameter(torch.empty(channels, width, device=device, dtype=dtype))
        self.bias = None
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1 / sqrt(width), as torch.nn.Conv1d initializes a depthwise convolution."""
        bound = 1 / math.sqrt(self.width)
        for one in self.parameters(recurse=False):
            torch.nn.init.uniform_(one, -bound, bound)

    def forward(
        self,
        x: Tensor,
        *,
        input_gate: Optional[Tensor] = None,
        output_gate: Optional[Tensor] = None,
        query_start_loc: Optional[Tensor] = None,
        seq_idx: Optional[Tensor] = None,
        initial_state: Optional[Tensor] = None,
        return_final_state: bool = False,
    ) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        """shortconv.torch.short_conv with the parameters of this layer."""
        return short_conv(
            x, self.weight, self.bias, activation=self.activation, residual=self.residual,
            input_gate=input_gate, output_gate=output_gate, query_start_loc=query_start_loc,
            seq_idx=seq_idx, initial_state=initial_state, return_final_state=return_final_state,
            dilation=self.dilation)

    def extra_repr(self) -> str:
        """The arguments of the constructor that differ from the defaults."""
        text = f"{self.channels}, {self.width}"
        if self.bias is None:
            text += ", bias=False"
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        if self.residual:
            text += ", residual=True"
        return text if self.dilation == 1 else f"{text}, dilation={self.dilation}"
