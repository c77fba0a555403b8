"""A layer of LFM2 in one launch: the convolution and the products before and after it.

vLLM's layer ShortConv computes B * x, convolves it, multiplies by C, for decodes and prompts apart,
and copies the rows of both together. layer_forward does the same with input_gate and output_gate:
one launch for the decodes of a batch, one for its prompts, both into the rows of one array.
"""

import functools
from typing import Any, Dict

from shortconv import torch as conv
from shortconv._core import DECODE, FORWARD, LONGER_INDICES, STATE_CHANNELS_FIRST
from shortconv.compat._common import Function, Tensor
from shortconv.compat.vllm.functions import NULL_BLOCK_ID, slots_of

_LAYOUT = STATE_CHANNELS_FIRST | LONGER_INDICES

# Names that the method has to use for layer_forward to replace it: members of the layer, of the
# metadata and of the module.
NEEDED_NAMES = frozenset({
    "attn_metadata", "bias", "conv", "get_forward_context", "has_initial_states_p", "in_proj",
    "is_conv_state_dim_first", "kv_cache", "num_decode_tokens", "num_prefill_tokens",
    "num_prefills", "out_proj", "prefix", "query_start_loc_p", "state_indices_tensor_d",
    "state_indices_tensor_p", "weight"})
# Others that it uses in the versions that were read. A new one may be something that is not here.
KNOWN_NAMES = NEEDED_NAMES | frozenset({
    "ShortConvAttentionMetadata", "append", "causal_conv1d_fn", "causal_conv1d_update", "chunk",
    "contiguous", "dict", "get", "insert", "isinstance", "num_accepted_tokens", "query_start_loc_d",
    "size", "split", "torch", "transpose", "view", "vstack"})


def layer_forward(original: Function) -> Function:
    """ShortConv.forward_cuda(self, hidden_states, output), with its products inside the launches.

    Draft tokens and runs without metadata go to the original.
    """
    module: Dict[str, Any] = original.__globals__

    @functools.wraps(original)
    def forward_cuda(self: Any, hidden_states: Tensor, output: Tensor) -> Any:
        of_layers = module["get_forward_context"]().attn_metadata
        metadata = of_layers.get(self.prefix) if isinstance(of_layers, dict) else None
        if metadata is None or getattr(metadata, "num_accepted_tokens", None) is not None:
            return original(self, hidden_states, output)
        state = self.kv_cache[0]
        if not module["is_conv_state_dim_first"]():
            state = state.transpose(-1, -2)
        tokens = metadata.num_decode_tokens + metadata.num_prefill_tokens
        rows = self.in_proj(hidden_states)[0][:tokens]
        convolved = _convolve(rows, self.conv, state, metadata)
        output[:tokens] = self.out_proj(convolved)[0]
        return None

    return forward_cuda


def _convolve(rows: Tensor, layer: Any, state: Tensor, metadata: Any) -> Tensor:
    """C * conv(B * x) of rows [tokens, 3 channels] of B, C and x, decodes before prompts."""
    input_gate, output_gate, x = rows.chunk(3, dim=-1)
    weight = layer.weight.squeeze(1)  # a plain tensor of [channels, 1, width] of a subclass
    out = x.new_empty(x.shape)
    decodes = metadata.num_decode_tokens

    def run(op: int, part: slice, slots: Any, *sequences: Any) -> None:
        conv.run(op | _LAYOUT, x[part], out[part], weight, layer.bias, state, slots_of(slots, None),
                 *sequences, None, NULL_BLOCK_ID, None, "input_gate", input_gate[part],
                 "output_gate", output_gate[part])

    if decodes > 0:
        run(DECODE, slice(0, decodes), metadata.state_indices_tensor_d, None, None, True)
    if metadata.num_prefills > 0:
        run(FORWARD, slice(decodes, None), metadata.state_indices_tensor_p,
            metadata.query_start_loc_p, metadata.has_initial_states_p, False)
    return out
