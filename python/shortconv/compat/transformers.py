"""Layers of transformers with one call of ours after their projection: the gated delta nets of
Qwen3-Next and Qwen3.5, and the short convolutions of LFM2.

    from shortconv.compat.transformers import fuse

    layers = fuse(model)  # the number of layers that changed

A delta net then takes one launch for its convolution, the split into q, k and v, their norms and the
gates, instead of about ten; a layer of LFM2 one for its convolution and both products. Inference
only: calls that need gradients, packed sequences (cu_seq_lens_q, seq_idx) and caches that record the
past run the layer's own code. `unfuse` undoes it.

Works with the layers and caches of transformers 5. Differences of results are those of rounding:
the norms divide by a correctly rounded root, beta is rounded to the dtype of b, as there, and a
result of LFM2 is rounded once, after its product.
"""

import sys
from typing import Any, Callable, NamedTuple, Optional, Tuple

from shortconv import _groups, models
from shortconv._group_arguments import Gates
from shortconv.torch import forward as convolve
from shortconv.torch import torch

_DELTA_NETS = {"Qwen3NextGatedDeltaNet": "interleaved", "Qwen3_5GatedDeltaNet": "flat",
               "Qwen3_5MoeGatedDeltaNet": "flat"}  # layouts
_SHORT_CONVS = ("Lfm2ShortConv", "Lfm2MoeShortConv")
_PACKED = ("cu_seq_lens_q", "seq_idx")  # arguments of packed sequences
_OF_DELTA_NETS = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim", "conv1d", "A_log",
                  "dt_bias", "norm", "out_proj", "layer_idx", "activation")
_OF_SHORT_CONVS = ("conv", "in_proj", "out_proj", "layer_idx")


class _Fused(NamedTuple):
    """What a layer gets: its own forward, and, in a delta net, the groups of its rows."""

    forward: Callable[..., Any]
    front: Optional[models.Front] = None
    is_interleaved: bool = False


def fuse(model: torch.nn.Module) -> int:
    """Changes all gated delta nets and short convolutions of a model.

    Returns:
      The number of layers, those that were changed before included. 0: the model has none.

    Raises:
      NotImplementedError: a layer lacks a member that this module reads, or has an activation other
        than SiLU, or a bias.
    """
    layers = [one for one in model.modules()
              if type(one).__name__ in (*_DELTA_NETS, *_SHORT_CONVS)]
    changed = [one for one in layers if not hasattr(one, "_shortconv_fused")]
    for layer in changed:
        _require_known(layer)
    for layer in changed:
        layout = _DELTA_NETS.get(type(layer).__name__)
        if layout is None:
            layer._shortconv_fused = _Fused(layer.forward)
            layer.forward = _short_conv_of(layer)
            continue
        front = models.gated_delta_net(
            num_k_heads=layer.num_k_heads, num_v_heads=layer.num_v_heads,
            head_k_dim=layer.head_k_dim, head_v_dim=layer.head_v_dim, layout=layout,
            copy_z=layout == "interleaved", round_beta=True)
        layer._shortconv_fused = _Fused(layer.forward, front, layout == "interleaved")
        layer.forward = _delta_net_of(layer)
    return len(layers)


def unfuse(model: torch.nn.Module) -> None:
    """Gives the layers of a model their own code back."""
    for layer in model.modules():
        if hasattr(layer, "_shortconv_fused"):
            del layer.forward  # of the instance; that of the class is visible again
            del layer._shortconv_fused


def _require_known(layer: Any) -> None:
    name = type(layer).__name__
    members = _OF_DELTA_NETS if name in _DELTA_NETS else _OF_SHORT_CONVS
    missing = [one for one in members if not hasattr(layer, one)]
    if missing:
        raise NotImplementedError(f"{name}: has no {missing[0]}; this version of transformers is "
                                  "not supported")
    if name in _SHORT_CONVS:
        return
    if layer.activation not in ("silu", "swish"):
        raise NotImplementedError(f"{name}: has the activation {layer.activation!r}; expected silu")
    if layer.conv1d.bias is not None:
        raise NotImplementedError(f"{name}: has a convolution with a bias; expected none")


def _delta_net_of(layer: Any) -> Callable[..., Any]:
    def forward(hidden_states: torch.Tensor, cache_params: Any = None,
                attention_mask: Optional[torch.Tensor] = None, **options: Any) -> Any:
        cache = None if cache_params is None else cache_params.layers[layer.layer_idx]
        if _needs_own_code(layer, hidden_states, cache, options):
            return layer._shortconv_fused.forward(
                hidden_states, cache_params=cache_params, attention_mask=attention_mask, **options)
        return _run_delta_net(layer, _masked(hidden_states, attention_mask), cache)

    return forward


def _short_conv_of(layer: Any) -> Callable[..., Any]:
    def forward(hidden_states: torch.Tensor, past_key_values: Any = None,
                attention_mask: Optional[torch.Tensor] = None, **options: Any) -> Any:
        cache = None if past_key_values is None else past_key_values.layers[layer.layer_idx]
        if _needs_own_code(layer, hidden_states, cache, options):
            return layer._shortconv_fused.forward(
                hidden_states, past_key_values=past_key_values, attention_mask=attention_mask,
                **options)
        rows = layer.in_proj(_masked(hidden_states, attention_mask))
        input_gate, output_gate, x = rows.chunk(3, -1)
        weight = layer.conv.weight.squeeze(1)
        state, resumes = _state_of(cache, x, weight)
        out = convolve(x, weight, layer.conv.bias, state=state, initial_state=resumes,
                       base_column=0 if state is None else 1, input_gate=input_gate,
                       output_gate=output_gate)
        return layer.out_proj(out)

    return forward


def _needs_own_code(layer: Any, hidden_states: torch.Tensor, cache: Any, options: Any) -> bool:
    needs_gradient = torch.is_grad_enabled() and (
        hidden_states.requires_grad or any(one.requires_grad for one in layer.parameters()))
    return (needs_gradient or any(options.get(name) is not None for name in _PACKED)
            or (cache is not None and cache.record_past))


def _masked(hidden_states: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
    """Zeros where a mask [batch, tokens] of these tokens has zeros."""
    if mask is None or mask.shape != hidden_states.shape[:2]:
        return hidden_states
    return hidden_states * mask[..., None].to(hidden_states.dtype)


def _state_of(cache: Any, x: torch.Tensor,
              weight: torch.Tensor) -> Tuple[Optional[torch.Tensor], bool]:
    """The state [batch, columns, channels] of a cache, and whether the sequences continue from it.

    The cache keeps `width` inputs. No output depends on the oldest one, in the layers' own code
    either, so that its column is left as it is: shifting it would take calls with groups off their
    one launch on a GPU.
    """
    if cache is None:
        return None, False
    resumes = bool(cache.has_previous_state[0])
    if not resumes:
        cache.lazy_initialization(
            conv_states=x.new_zeros(x.shape[0], weight.shape[0], weight.shape[1]))
        cache.has_previous_state[0] = True
    return cache.conv_states[0].transpose(1, 2), resumes


def _run_delta_net(layer: Any, hidden_states: torch.Tensor, cache: Any) -> torch.Tensor:
    batch, tokens = hidden_states.shape[:2]
    resumes = cache is not None and cache.has_previous_state[0]
    with torch.no_grad():
        q, k, v, z, g, beta = _front(layer, hidden_states, cache)
    repeats = layer.num_v_heads // layer.num_k_heads
    if repeats > 1:
        q, k = (one.repeat_interleave(repeats, dim=2) for one in (q, k))
    rule = _rule_of(layer, is_step=resumes and tokens == 1)
    out, recurrent_state = rule(
        q, k, v, g=g, beta=beta,
        initial_state=cache.recurrent_states[0] if resumes else None,
        output_final_state=cache is not None, use_qk_l2norm_in_kernel=False)
    if cache is not None:
        cache.update_recurrent_state(recurrent_state)
    out = layer.norm(out.reshape(-1, layer.head_v_dim), z.reshape(-1, layer.head_v_dim))
    return layer.out_proj(out.reshape(batch, tokens, -1))


def _front(layer: Any, hidden_states: torch.Tensor, cache: Any) -> Tuple[torch.Tensor, ...]:
    """q and k, normalized, v, z, g and beta. Updates the state of the convolution."""
    fused = layer._shortconv_fused
    z = None
    if fused.is_interleaved:
        x = layer.in_proj_qkvz(hidden_states)
        gates = fused.front.gates(layer.in_proj_ba(hidden_states), layer.A_log.float(),
                                  layer.dt_bias)
    else:
        x = layer.in_proj_qkv(hidden_states)
        z = layer.in_proj_z(hidden_states)
        gates = Gates(layer.in_proj_a(hidden_states), layer.in_proj_b(hidden_states),
                      layer.A_log.float(), layer.dt_bias, round_beta=True)
    weight = layer.conv1d.weight.squeeze(1)
    state, resumes = _state_of(cache, x, weight)
    groups, g, beta = _groups.forward_groups(
        x, weight, groups=fused.front.groups, gates=gates, state=state,
        base_column=0 if state is None else 1, initial_state=resumes, activation="silu")
    if fused.is_interleaved:
        *groups, z = groups
    return (*groups, z, g, beta)


def _rule_of(layer: Any, is_step: bool) -> Callable[..., Any]:
    """The layer's function for one token, or for several."""
    name = "recurrent_gated_delta_rule" if is_step else "chunk_gated_delta_rule"
    module = sys.modules[type(layer).__module__]
    for owner, prefix in ((layer, ""), (module, ""), (module, "torch_")):
        if hasattr(owner, prefix + name):
            return getattr(owner, prefix + name)
    raise NotImplementedError(f"{type(layer).__name__}: has no {name}; this version of "
                              "transformers is not supported")
