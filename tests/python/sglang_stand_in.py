"""Modules with the names and the contracts of SGLang's, for tests of its plug-in without SGLang.

The functions compute with this library, one by one. The backend calls them as SGLang's does.
"""

import sys
import types

import shortconv
import torch
from shortconv.compat.sglang import dispatcher, triton
from stand_in import add_module

MAMBA = "sglang.srt.layers.attention.mamba."
TRITON = {"old": MAMBA + "causal_conv1d_triton",  # until 0.5.15, and from 0.5.16
          "new": "sglang.kernels.ops.mamba.causal_conv1d_triton"}
LINEAR = "sglang.srt.layers.attention.linear."


def make_functions(calls):
    """{name: function} with the contracts of SGLang's. Each adds its name to `calls`."""

    def causal_conv1d_fn(
        x, weight, bias, conv_states, query_start_loc, seq_lens_cpu, cache_indices=None,
        has_initial_state=None, activation="silu", pad_slot_id=-1, validate_data=False,
        block_table=None, **kwargs
    ):
        calls.append("causal_conv1d_fn_triton")
        return triton.causal_conv1d_fn(
            x, weight, bias, conv_states, query_start_loc, seq_lens_cpu, cache_indices,
            has_initial_state, activation, pad_slot_id)

    def causal_conv1d_update(
        x, conv_state, weight, bias=None, activation=None, cache_seqlens=None,
        conv_state_indices=None, num_accept_tokens=None, intermediate_conv_window=None,
        intermediate_state_indices=None, retrieve_next_token=None, retrieve_next_sibling=None,
        retrieve_parent_token=None, pad_slot_id=-1, metadata=None, validate_data=False
    ):
        calls.append("causal_conv1d_update_triton")
        return triton.causal_conv1d_update(
            x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices,
            num_accept_tokens, intermediate_conv_window, intermediate_state_indices,
            retrieve_next_token, retrieve_next_sibling, retrieve_parent_token, pad_slot_id)

    def fused_qkv_split_gdn_prefill(mixed_qkv, num_q_heads, num_k_heads, num_v_heads, head_q,
                                    head_k, head_v):
        assert type(mixed_qkv) is torch.Tensor
        calls.append("fused_qkv_split_gdn_prefill")
        heads = ((num_q_heads, head_q), (num_k_heads, head_k), (num_v_heads, head_v))
        parts = mixed_qkv.split([count * size for count, size in heads], 1)
        return tuple(one.unflatten(1, sizes).contiguous()[None]
                     for one, sizes in zip(parts, heads))

    def fused_gdn_gating(A_log, a, b, dt_bias, beta=1.0, threshold=20.0):
        calls.append("fused_gdn_gating")
        gates = shortconv.Gates(a, b, A_log, dt_bias, round_beta=True)
        return tuple(one[None] for one in shortconv.delta_gates(gates))

    def chunk_gated_delta_rule(
        q, k, v, g, beta, scale=None, initial_state=None, initial_state_indices=None,
        cu_seqlens=None, head_first=False, use_qk_l2norm_in_kernel=False, inplace_update=True
    ):
        calls.append("chunk_gated_delta_rule")
        assert all(type(one) is torch.Tensor for one in (q, k, v, g, beta))
        if use_qk_l2norm_in_kernel:
            calls.append("l2norm")
            q, k = (shortconv.l2_norm(one[0].contiguous())[None] for one in (q, k))
        return (q, k, v.contiguous(), g, beta), None, cu_seqlens

    return {one.__name__: one for one in (
        causal_conv1d_fn, causal_conv1d_update, fused_qkv_split_gdn_prefill, fused_gdn_gating,
        chunk_gated_delta_rule)}


def make_dispatcher(calls):
    """The two functions of SGLang's causal_conv1d module."""

    def causal_conv1d_fn(
        x, weight, bias=None, query_start_loc=None, cache_indices=None, has_initial_state=None,
        conv_states=None, activation="silu", pad_slot_id=-1, **kwargs
    ):
        calls.append("causal_conv1d_fn")
        return dispatcher.causal_conv1d_fn(
            x, weight, bias, query_start_loc, cache_indices, has_initial_state, conv_states,
            activation, pad_slot_id, **kwargs)

    def causal_conv1d_update(
        x, conv_state, weight, bias=None, activation=None, cache_seqlens=None,
        conv_state_indices=None, pad_slot_id=-1
    ):
        calls.append("causal_conv1d_update")
        return dispatcher.causal_conv1d_update(
            x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices, pad_slot_id)

    return {one.__name__: one for one in (causal_conv1d_fn, causal_conv1d_update)}


def add_engine(monkeypatch, layout="new", has_split=True, **replaced):
    """Puts the modules into sys.modules until the test ends.

    Args:
      layout: "old" or "new": where causal_conv1d_triton is.
      has_split: whether the backend splits rows with fused_qkv_split_gdn_prefill.
      replaced: functions instead of those here, by name.

    Returns:
      A namespace with the modules, triton, chooser, model, backend and delta_rule, and a list of
      the names of the functions that were called.
    """
    for part in [one for one in sys.modules if one.partition(".")[0] == "sglang"]:
        monkeypatch.delitem(sys.modules, part)
    calls = []
    made = {**make_functions(calls), **replaced}
    convolutions = {name: made[name] for name in ("causal_conv1d_fn", "causal_conv1d_update")}
    chooser = make_dispatcher(calls)
    members = {"torch": torch, "fused_gdn_gating": made["fused_gdn_gating"],
               "causal_conv1d_fn": chooser["causal_conv1d_fn"],
               "causal_conv1d_update": convolutions["causal_conv1d_update"]}
    if has_split:
        members["fused_qkv_split_gdn_prefill"] = made["fused_qkv_split_gdn_prefill"]
    engine = types.SimpleNamespace(
        calls=calls, triton=add_module(monkeypatch, TRITON[layout], convolutions),
        chooser=add_module(monkeypatch, MAMBA + "causal_conv1d", {
            **chooser, "_causal_conv1d_fn_triton": made["causal_conv1d_fn"]}),
        model=add_module(monkeypatch, "sglang.srt.models.lfm2", chooser),
        backend=add_module(monkeypatch, LINEAR + "gdn_backend", members),
        delta_rule=add_module(monkeypatch, LINEAR + "kernels.gdn_triton", {
            "chunk_gated_delta_rule": made["chunk_gated_delta_rule"], "torch": torch}))
    sys.modules["sglang"].__version__ = "0.9.9"
    exec(DELTA_RULE_CODE, vars(engine.delta_rule))
    engine.backend.TritonKernel = engine.delta_rule.TritonKernel
    exec(BACKEND_CODE, vars(engine.backend))
    return engine


DELTA_RULE_CODE = '''
class TritonKernel:
    def extend(self, q, k, v, g, beta, *, ssm_states, cache_indices, query_start_loc):
        return chunk_gated_delta_rule(
            q=q, k=k, v=v, g=g, beta=beta, initial_state=ssm_states,
            initial_state_indices=cache_indices, cu_seqlens=query_start_loc, head_first=False,
            use_qk_l2norm_in_kernel=True)
'''

# After the order of operations for prompts: snapshots of inputs before the convolution, split,
# gates, delta rule. OtherKernel uses q, k and v itself, as those that are not of Triton do.
BACKEND_CODE = '''
class OtherKernel:
    def extend(self, q, k, v, g, beta, *, ssm_states, cache_indices, query_start_loc):
        assert all(type(one) is torch.Tensor for one in (q, k, v, g, beta))
        return (q.contiguous(), k.contiguous(), v.contiguous(), g, beta), None, None


class GDNKernelDispatcher:
    def __init__(self, kernel):
        self.extend_kernel = kernel

    def extend(self, q, k, v, g, beta, *, ssm_states, cache_indices, query_start_loc, **kwargs):
        return self.extend_kernel.extend(
            q, k, v, g, beta, ssm_states=ssm_states, cache_indices=cache_indices,
            query_start_loc=query_start_loc, **kwargs)


def extend(net, x, a, b, states, batch, kernel=TritonKernel, gates=None, look=None):
    if batch.tracked is not None:
        rows, slots = batch.tracked
        states[slots] = x[rows].transpose(1, 2)
    rows = causal_conv1d_fn(
        x.transpose(0, 1), net.weight, net.bias, activation="silu", conv_states=states,
        has_initial_state=batch.resumed, cache_indices=batch.slots,
        query_start_loc=batch.bounds, seq_lens_cpu=batch.lengths).transpose(0, 1)[: x.shape[0]]
    if look is not None:
        look(rows)
    sizes = ((net.k_heads, net.k_dim), (net.k_heads, net.k_dim), (net.v_heads, net.v_dim))
    if "fused_qkv_split_gdn_prefill" in globals():
        q, k, v = fused_qkv_split_gdn_prefill(rows, *(n for n, _ in sizes), *(d for _, d in sizes))
    else:
        parts = torch.split(rows, [count * size for count, size in sizes], dim=-1)
        count = parts[0].shape[0]
        q, k, v = (one.view(1, count, *size) for one, size in zip(parts, sizes))
    g, beta = (gates or fused_gdn_gating)(net.a_log, a, b, net.dt_bias)
    results, _, _ = GDNKernelDispatcher(kernel()).extend(
        q=q, k=k, v=v, g=g, beta=beta, ssm_states=None, cache_indices=batch.slots,
        query_start_loc=batch.bounds)
    return results


def verify(net, x, states, slots, windows, **tree):
    drafts = windows.shape[1]
    rows = x.view(-1, drafts, x.shape[1]).transpose(1, 2)
    out = causal_conv1d_update(
        rows, states, net.weight, net.bias, "silu", conv_state_indices=slots,
        intermediate_conv_window=windows,
        intermediate_state_indices=torch.arange(len(slots), device=x.device), **tree)
    return out.transpose(1, 2).reshape(x.shape)
'''
