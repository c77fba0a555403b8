"""Layers of transformers with one call of ours after their projection: gated delta nets
(Qwen3-Next, Qwen3.5, OLMo hybrid), Kimi delta attention (Kimi Linear), Mamba-2 (Mamba-2, Falcon-H1,
Nemotron-H, Granite 4, Bamba, Zamba2) and the short convolutions of LFM2.

    from shortconv.compat.transformers import fuse

    layers = fuse(model)  # the number of layers that changed

One launch then computes a delta net's convolution, the split into q, k and v, their norms and the
gates, instead of about ten; of Mamba-2 the convolution and the split into x, B and C; of LFM2 the
convolution and both products. Nothing is transposed. Training works: gradients are those of
shortconv.torch.short_conv_groups and short_conv. Packed sequences (seq_idx, cu_seq_lens_q) work in
delta nets and LFM2. What these cannot compute runs the layer's own code: caches that record the
past, packed sequences in other layers or after a cached prompt, gradients of calls that continue
from a cache, float64, torch.func, forward-mode gradients, and exports with gradients. `unfuse`
undoes it.

Works with the layers and caches of transformers 5.16 and later. Differences of results are those of
rounding: sums of the convolution and the norms have another order, beta is rounded to the dtype of
b, as there, and a result of LFM2 is rounded once, after its product. Weights of the convolution are
converted to the dtype of the rows, as autocast does.
"""

import sys
import types
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

from shortconv import _groups, models
from shortconv._group_arguments import Gates
from shortconv.torch import forward as convolve
from shortconv.torch import short_conv, short_conv_groups, torch

_Tensor = torch.Tensor
_CACHES = ("cache_params", "past_key_values", "cache")  # names of the argument
_PACKED = ("cu_seq_lens_q", "seq_idx")  # arguments of packed sequences
_MASK = "apply_mask_to_padding_states"  # function of the module of a layer


class _Kind(NamedTuple):
    """What this module knows about the layers of a class.

    run: computes the output of a layer from its inputs, mask, cache, whether the sequences continue
      from the cache, and the arguments of packed sequences.
    members: of the layer, those that this module reads.
    functions: of the module of the layer, for several tokens and for one.
    front: the groups of the rows of a layer.
    project: of delta nets, what their projections give.
    ends: names of the norm and the last projection of delta nets.
    packs: whether `run` takes packed sequences.
    """

    run: Callable[[Any, _Tensor, Optional[_Tensor], Any, bool, Dict[str, _Tensor]], _Tensor]
    members: Tuple[str, ...]
    functions: Tuple[str, ...] = ()
    front: Optional[Callable[[Any], models.Front]] = None
    project: Optional[Callable[[Any, _Tensor], "_Projected"]] = None
    ends: Tuple[str, str] = ("norm", "out_proj")
    packs: bool = False


class _Projected(NamedTuple):
    """Projections of a delta net, [batch, tokens, ...].

    rows: the inputs of the convolution, among other columns.
    z: input of the gate of the norm. None: a group of the rows.
    gates: None: g and beta are computed.
    """

    rows: _Tensor
    z: Optional[_Tensor]
    gates: Optional[Gates]
    g: Optional[_Tensor] = None
    beta: Optional[_Tensor] = None


class _Fused(NamedTuple):
    """What a layer gets."""

    kind: _Kind
    front: Optional[models.Front]
    forward: Callable[..., Any]  # its own
    replaced: Optional[Callable[..., Any]]  # forward of the instance, where it had one


def fuse(model: torch.nn.Module) -> int:
    """Changes all layers of a model that this module knows.

    Returns:
      The number of layers, those that were changed before included. 0: the model has none.

    Raises:
      NotImplementedError: a layer lacks a member or function that this module reads, has an
        activation other than SiLU, or a convolution of another size.
    """
    layers = [one for one in model.modules() if type(one).__name__ in _KINDS]
    fused = [(one, _fused(one)) for one in layers if not hasattr(one, "_shortconv_fused")]
    for layer, what in fused:
        layer._shortconv_fused = what
        layer.forward = types.MethodType(_forward, layer)  # a copy of the layer gets its own
    return len(layers)


def unfuse(model: torch.nn.Module) -> None:
    """Gives the layers of a model their own code back."""
    for layer in model.modules():
        if hasattr(layer, "_shortconv_fused"):
            replaced = layer._shortconv_fused.replaced
            del layer.forward, layer._shortconv_fused  # that of the class is visible again
            if replaced is not None:
                layer.forward = replaced


def _fused(layer: Any) -> _Fused:
    name = type(layer).__name__
    kind = _KINDS[name]
    for member in (*kind.members, "layer_idx"):
        if not hasattr(layer, member):
            raise NotImplementedError(f"{name}: has no {member}; this version of transformers is "
                                      "not supported")
    for function in (*kind.functions, _MASK):
        _function_of(layer, function)
    front = None
    if kind.front is not None:
        if layer.activation not in ("silu", "swish"):
            raise NotImplementedError(f"{name}: has the activation {layer.activation!r}; expected "
                                      "silu")
        front = kind.front(layer)
        if front.channels != layer.conv1d.weight.shape[0]:
            raise NotImplementedError(f"{name}: has a convolution of "
                                      f"{layer.conv1d.weight.shape[0]} channels; expected "
                                      f"{front.channels}, as its heads have")
    return _Fused(kind, front, layer.forward, vars(layer).get("forward"))


def _forward(layer: Any, hidden_states: _Tensor, *arguments: Any, **options: Any) -> Any:
    """Replaces forward of a layer, which has the same arguments."""
    named = {**dict(zip(("cache", "attention_mask"), arguments)), **options}
    caches = [named[name] for name in _CACHES if named.get(name) is not None]
    cache = caches[0].layers[layer.layer_idx] if caches else None
    fused = layer._shortconv_fused
    resumes = cache is not None and bool(cache.has_previous_state[0])
    packed = {name: named[name] for name in _PACKED if named.get(name) is not None}
    if _needs_own_code(layer, hidden_states, cache, resumes, packed):
        return fused.forward(hidden_states, *arguments, **options)
    return fused.kind.run(
        layer, hidden_states, named.get("attention_mask"), cache, resumes, packed)


def _needs_own_code(layer: Any, hidden_states: _Tensor, cache: Any, resumes: bool,
                    packed: Dict[str, _Tensor]) -> bool:
    """Whether a call has something that the fused code cannot compute."""
    if hidden_states.dtype == torch.float64 or (cache is not None and cache.record_past):
        return True
    if packed and (resumes or not layer._shortconv_fused.kind.packs):
        return True
    if (torch._C._are_functorch_transforms_active()
            or torch.autograd.forward_ad._current_level >= 0):
        return True
    if resumes and torch.is_grad_enabled() and any(
            one.requires_grad for states in (cache.conv_states, cache.recurrent_states)
            for one in states.values() if one is not None):
        return True
    # In code that torch.compile traces, is_exporting is true as well (torch 2.11).
    exports = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
    return (resumes or exports) and _needs_gradient(layer, hidden_states)


def _needs_gradient(layer: Any, inputs: _Tensor) -> bool:
    return torch.is_grad_enabled() and (
        inputs.requires_grad or any(one.requires_grad for one in layer.parameters()))


def _masked(layer: Any, x: _Tensor, mask: Optional[_Tensor]) -> _Tensor:
    """x [batch, tokens, columns] with zeros in padding, as the layer has them."""
    return x if mask is None else _function_of(layer, _MASK)(x, mask)


def _function_of(layer: Any, name: str) -> Callable[..., Any]:
    """A function of the module of a layer, or one that the layer has instead.

    Raises:
      NotImplementedError: there is none.
    """
    module = sys.modules[type(layer).__module__]
    for owner, prefix in ((layer, ""), (module, ""), (module, "torch_")):
        if hasattr(owner, prefix + name):
            function: Callable[..., Any] = getattr(owner, prefix + name)
            return function
    raise NotImplementedError(f"{type(layer).__name__}: has no function {name}; this version of "
                              "transformers is not supported")


def _state_of(cache: Any, resumes: bool, x: _Tensor, weight: _Tensor) -> Dict[str, Any]:
    """Arguments for the state of a cache.

    The cache keeps `width` inputs. No output depends on the oldest one, in the layers' own code
    either, so that its column is left as it is: shifting it would take calls with groups off their
    one launch on a GPU.
    """
    if cache is None:
        return {}
    if not resumes:
        cache.lazy_initialization(
            conv_states=x.new_zeros(x.shape[0], weight.shape[0], weight.shape[1]))
        cache.has_previous_state[0] = True
    return {"state": cache.conv_states[0].transpose(1, 2), "base_column": 1,
            "initial_state": resumes}


def _store_state(cache: Any, final_state: Optional[_Tensor]) -> None:
    """Stores the state after the first tokens in a cache, with its gradients."""
    if cache is not None:
        assert final_state is not None
        cache.update_conv_state(torch.nn.functional.pad(final_state.transpose(1, 2), (1, 0)))


def _seq_idx_of(packed: Dict[str, _Tensor], batch: int, tokens: int) -> Optional[_Tensor]:
    """[batch, tokens], the numbers of the sequences; None: one in each row of the batch.

    Raises:
      ValueError: only cu_seq_lens_q is given, which divides one row, for several rows.
    """
    if "seq_idx" in packed or not packed:
        return packed.get("seq_idx")
    if batch != 1:
        raise ValueError(f"cu_seq_lens_q: divides the tokens of one row, but the batch has {batch};"
                         " pass seq_idx")
    bounds = packed["cu_seq_lens_q"]
    rows = torch.arange(tokens, device=bounds.device, dtype=bounds.dtype)
    return torch.bucketize(rows, bounds[1:], out_int32=True, right=True)[None]


def _taps_of(conv: torch.nn.Conv1d, rows: _Tensor) -> Tuple[_Tensor, Optional[_Tensor]]:
    """Weight [channels, width] and bias of a convolution, in the dtype of the rows."""
    bias = conv.bias
    return conv.weight.squeeze(1).to(rows.dtype), None if bias is None else bias.to(rows.dtype)


def _grouped(layer: Any, rows: _Tensor, cache: Any, resumes: bool, gates: Optional[Gates] = None,
             seq_idx: Optional[_Tensor] = None) -> _groups.Grouped:
    """The groups of the rows of a projection. Updates the state of the convolution."""
    weight, bias = _taps_of(layer.conv1d, rows)
    if seq_idx is not None and cache is not None:
        # The last inputs become the state, whichever sequence they belong to, as in the own code.
        _grouped(layer, rows[:, 1 - weight.shape[1]:], cache, resumes)
        cache = None
    groups = layer._shortconv_fused.front.groups
    if _needs_gradient(layer, rows):
        found, final_state = short_conv_groups(
            rows, weight, bias, groups=groups, gates=gates, activation="silu", seq_idx=seq_idx,
            return_final_state=cache is not None)
        _store_state(cache, final_state)
        return found
    return _groups.forward_groups(
        rows, weight, bias, groups=groups, gates=gates, activation="silu", seq_idx=seq_idx,
        **_state_of(cache, resumes, rows, weight))


def _run_delta_net(layer: Any, hidden_states: _Tensor, mask: Optional[_Tensor], cache: Any,
                   resumes: bool, packed: Dict[str, _Tensor]) -> _Tensor:
    kind = layer._shortconv_fused.kind
    batch, tokens = hidden_states.shape[:2]
    rows, z, gates, g, beta = kind.project(layer, _masked(layer, hidden_states, mask))
    (q, k, v, *copied), *computed = _grouped(
        layer, rows, cache, resumes, gates, _seq_idx_of(packed, batch, tokens))
    if gates is not None:
        g, beta = computed
    repeats = v.shape[2] // q.shape[2]
    if repeats > 1:
        q, k = (one.repeat_interleave(repeats, dim=2) for one in (q, k))
    several, single = kind.functions
    rule = _function_of(layer, single if resumes and tokens == 1 else several)
    bounds = {"cu_seqlens": packed["cu_seq_lens_q"]} if "cu_seq_lens_q" in packed else {}
    out, recurrent_state = rule(
        q, k, v, g=g, beta=beta, **bounds,
        initial_state=cache.recurrent_states[0] if resumes else None,
        output_final_state=cache is not None, use_qk_l2norm_in_kernel=False)
    if cache is not None:
        cache.update_recurrent_state(recurrent_state)
    norm, last_projection = (getattr(layer, name) for name in kind.ends)
    z = copied[0] if z is None else z
    out = norm(out.reshape(-1, v.shape[3]), z.reshape(-1, v.shape[3]))
    result: _Tensor = last_projection(out.reshape(batch, tokens, -1))
    return result


def _front_of_delta_net(layer: Any, layout: str = "flat") -> models.Front:
    return models.gated_delta_net(
        num_k_heads=layer.num_k_heads, num_v_heads=layer.num_v_heads, head_k_dim=layer.head_k_dim,
        head_v_dim=layer.head_v_dim, layout=layout, copy_z=layout == "interleaved", round_beta=True)


def _front_of_qwen3_next(layer: Any) -> models.Front:
    return _front_of_delta_net(layer, "interleaved")


def _project_qwen3_next(layer: Any, hidden_states: _Tensor) -> _Projected:
    gates = layer._shortconv_fused.front.gates(
        layer.in_proj_ba(hidden_states), layer.A_log.float(), layer.dt_bias)
    return _Projected(layer.in_proj_qkvz(hidden_states), None, gates)


def _project_qwen3_5(layer: Any, hidden_states: _Tensor) -> _Projected:
    gates = Gates(layer.in_proj_a(hidden_states), layer.in_proj_b(hidden_states),
                  layer.A_log.float(), layer.dt_bias, round_beta=True)
    return _Projected(layer.in_proj_qkv(hidden_states), layer.in_proj_z(hidden_states), gates)


def _joined(layer: Any, hidden_states: _Tensor) -> _Tensor:
    """q, k and v of three projections in one row, which the layer's own code makes as well."""
    return torch.cat([project(hidden_states)
                      for project in (layer.q_proj, layer.k_proj, layer.v_proj)], -1)


def _project_olmo(layer: Any, hidden_states: _Tensor) -> _Projected:
    gates = Gates(layer.a_proj(hidden_states), layer.b_proj(hidden_states), layer.A_log.float(),
                  layer.dt_bias, beta_factor=2 if layer.allow_neg_eigval else 1, round_beta=True)
    return _Projected(_joined(layer, hidden_states), layer.g_proj(hidden_states), gates)


def _front_of_kimi(layer: Any) -> models.Front:
    return models.kimi_delta_attention(num_heads=layer.num_heads, head_dim=layer.head_dim,
                                       normalize=True)


def _project_kimi(layer: Any, hidden_states: _Tensor) -> _Projected:
    """The gate g has a value for each channel, so that it is not one of Gates."""
    return _Projected(
        _joined(layer, hidden_states), layer.g_b_proj(layer.g_a_proj(hidden_states)), None,
        layer.forget_gate(hidden_states), layer.b_proj(hidden_states).sigmoid())


def _run_mamba2(layer: Any, hidden_states: _Tensor, mask: Optional[_Tensor], cache: Any,
                resumes: bool, packed: Dict[str, _Tensor]) -> _Tensor:
    batch, tokens = hidden_states.shape[:2]
    hidden_states = _masked(layer, hidden_states, mask)
    if hasattr(layer, "mup_vector"):  # Falcon-H1
        rows = layer.in_proj(hidden_states * layer.ssm_in_multiplier) * layer.mup_vector
    else:
        rows = layer.in_proj(hidden_states)
    z, dt = rows[..., :layer.intermediate_size], rows[..., -layer.num_heads:]
    # Biases make padding other than zero again, which the layer's own code removes as well.
    x, b, c = (_masked(layer, group.flatten(2), mask).view_as(group)
               for group in _grouped(layer, rows, cache, resumes).groups)
    a = -layer.A_log.float().exp()
    has_norm = getattr(layer, "mamba_rms_norm", True)  # Falcon-H1 may have none
    several, single = layer._shortconv_fused.kind.functions
    if resumes and tokens == 1:
        heads = (layer.num_heads, layer.head_dim)
        out = _function_of(layer, single)(
            cache.recurrent_states[0], x[:, 0], dt[:, 0, :, None].expand(-1, *heads),
            a[:, None, None].expand(*heads, layer.ssm_state_size), b[:, 0], c[:, 0],
            layer.D[:, None].expand(heads), z=None if has_norm else z.reshape(batch, *heads),
            dt_bias=layer.dt_bias[:, None].expand(heads), dt_softplus=True)
    else:
        out = _function_of(layer, several)(
            x, dt, a, b, c, chunk_size=layer.chunk_size, D=layer.D, z=None,
            return_final_states=cache is not None, dt_bias=layer.dt_bias, dt_softplus=True,
            initial_states=cache.recurrent_states[0] if resumes else None,
            dt_limit=layer.time_step_limit)
        if cache is not None:
            out, recurrent_state = out
            cache.update_recurrent_state(recurrent_state)
        if not has_norm:
            out = out.flatten(2) * torch.nn.functional.silu(z)
    out = out.reshape(batch * tokens, -1)  # the norm of Falcon-H1 drops the axis of one token
    if has_norm:
        out = layer.norm(out, z.reshape(batch * tokens, -1))
    result: _Tensor = layer.out_proj(out.to(hidden_states.dtype).view(batch, tokens, -1))
    return result


def _front_of_mamba2(layer: Any) -> models.Front:
    return models.mamba2(num_heads=layer.num_heads, head_dim=layer.head_dim,
                         n_groups=layer.n_groups, state_size=layer.ssm_state_size)


def _convolved(layer: Any, x: _Tensor, input_gate: _Tensor, output_gate: _Tensor, cache: Any,
               resumes: bool, seq_idx: Optional[_Tensor]) -> _Tensor:
    """The gated convolution of LFM2. Updates its state."""
    weight, bias = _taps_of(layer.conv, x)
    if seq_idx is not None and cache is not None:  # as in _grouped
        last = slice(1 - weight.shape[1], None)
        _convolved(layer, x[:, last], input_gate[:, last], output_gate[:, last], cache, resumes,
                   None)
        cache = None
    if not _needs_gradient(layer, x):
        return convolve(x, weight, bias, input_gate=input_gate, output_gate=output_gate,
                        seq_idx=seq_idx, **_state_of(cache, resumes, x, weight))
    found = short_conv(x, weight, bias, input_gate=input_gate, output_gate=output_gate,
                       seq_idx=seq_idx, return_final_state=cache is not None)
    out, final_state = found if isinstance(found, tuple) else (found, None)
    _store_state(cache, final_state)
    return out


def _run_short_conv(layer: Any, hidden_states: _Tensor, mask: Optional[_Tensor], cache: Any,
                    resumes: bool, packed: Dict[str, _Tensor]) -> _Tensor:
    rows = layer.in_proj(_masked(layer, hidden_states, mask))
    input_gate, output_gate, x = rows.chunk(3, -1)
    out = _convolved(layer, x, input_gate, output_gate, cache, resumes,
                     _seq_idx_of(packed, *x.shape[:2]))
    result: _Tensor = layer.out_proj(out)
    return result


_HEADS = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim", "conv1d", "A_log", "dt_bias",
          "activation")
_SEPARATE = ("q_proj", "k_proj", "v_proj", "b_proj")
_RULES = ("chunk_gated_delta_rule", "recurrent_gated_delta_rule")
_LAST = ("norm", "out_proj")
_O_LAST = ("o_norm", "o_proj")

_QWEN3_5 = _Kind(
    _run_delta_net, (*_HEADS, *_LAST, "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b"), _RULES,
    _front_of_delta_net, _project_qwen3_5, packs=True)
_KIMI = _Kind(
    _run_delta_net,
    (*_SEPARATE, *_O_LAST, "num_heads", "head_dim", "conv1d", "activation", "forget_gate",
     "g_a_proj", "g_b_proj"),
    ("chunk_kimi_delta_attention", "recurrent_kimi_delta_attention"), _front_of_kimi, _project_kimi,
    _O_LAST)
_MAMBA2 = _Kind(
    _run_mamba2,
    ("num_heads", "head_dim", "n_groups", "ssm_state_size", "intermediate_size", "conv1d", "A_log",
     "D", "dt_bias", "activation", "chunk_size", "time_step_limit", "in_proj", "norm", "out_proj"),
    ("mamba2_chunk_scan", "mamba2_selective_state_update"), _front_of_mamba2)
_LFM2 = _Kind(_run_short_conv, ("conv", "in_proj", "out_proj"), packs=True)

_KINDS: Dict[str, _Kind] = {  # by the class of the layer
    "Qwen3NextGatedDeltaNet": _Kind(
        _run_delta_net, (*_HEADS, *_LAST, "in_proj_qkvz", "in_proj_ba"), _RULES,
        _front_of_qwen3_next, _project_qwen3_next, packs=True),
    "Qwen3_5GatedDeltaNet": _QWEN3_5,
    "Qwen3_5MoeGatedDeltaNet": _QWEN3_5,
    "OlmoHybridGatedDeltaNet": _Kind(
        _run_delta_net, (*_HEADS, *_SEPARATE, *_O_LAST, "a_proj", "g_proj", "allow_neg_eigval"),
        _RULES, _front_of_delta_net, _project_olmo, _O_LAST, packs=True),
    "KimiLinearDeltaAttention": _KIMI,
    "Mamba2Mixer": _MAMBA2,
    "FalconH1Mixer": _MAMBA2._replace(
        members=(*_MAMBA2.members, "mup_vector", "ssm_in_multiplier", "mamba_rms_norm")),
    "NemotronHMamba2Mixer": _MAMBA2,
    "BambaMixer": _MAMBA2,
    "GraniteMoeHybridMambaLayer": _MAMBA2,
    "Zamba2MambaMixer": _MAMBA2,
    "Lfm2ShortConv": _LFM2,
    "Lfm2MoeShortConv": _LFM2,
}
