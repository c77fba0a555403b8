"""Modules with the names and the contracts of vLLM's, for tests of its plug-in without vLLM.

The functions compute with this library, one by one. The layers call them as vLLM's layers do.
"""

import sys
import types

import shortconv
import torch
from shortconv.compat.vllm import functions
from stand_in import add_module

OPS = "vllm.model_executor.layers.mamba.ops.causal_conv1d"
METADATA = "vllm.v1.attention.backends.utils"
DELTA_NET = "vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn"
SHORT_CONV = "vllm.model_executor.layers.mamba.short_conv"


def add_engine(monkeypatch, **replaced):
    """Puts the modules into sys.modules until the test ends.

    Args:
      replaced: functions instead of those here, by name.

    Returns:
      A namespace with the modules, ops, metadata, delta_net and short_conv, and a list of the names
      of the functions that were called.
    """
    calls = []

    def causal_conv1d_fn(
        x, weight, bias, conv_states, query_start_loc, cache_indices=None, has_initial_state=None,
        activation="silu", pad_slot_id=-1, null_block_id=0, metadata=None, validate_data=False
    ):
        calls.append("causal_conv1d_fn")
        return functions.causal_conv1d_fn(
            x, weight, bias, conv_states, query_start_loc, cache_indices, has_initial_state,
            activation, null_block_id=null_block_id)

    def causal_conv1d_update(
        x, conv_state, weight, bias=None, activation=None, conv_state_indices=None,
        num_accepted_tokens=None, query_start_loc=None, max_query_len=-1, null_block_id=0,
        validate_data=False
    ):
        calls.append("causal_conv1d_update")
        return functions.causal_conv1d_update(
            x, conv_state, weight, bias, activation, conv_state_indices, num_accepted_tokens,
            query_start_loc, max_query_len, null_block_id)

    def compute_causal_conv1d_metadata(query_start_loc_p_cpu, *, device):
        calls.append("compute_causal_conv1d_metadata")
        return {}, torch.zeros(1), torch.zeros(1)

    def fused_post_conv_prep(
        conv_output, a, b, A_log, dt_bias, num_k_heads, head_k_dim, head_v_dim, apply_l2norm=True,
        output_g_exp=False
    ):
        assert type(conv_output) is torch.Tensor
        calls.append("fused_post_conv_prep")
        keys = num_k_heads * head_k_dim
        q, k, v = conv_output.split([keys, keys, conv_output.shape[1] - 2 * keys], 1)
        q, k = (one.unflatten(1, (num_k_heads, head_k_dim)).contiguous() for one in (q, k))
        gates = shortconv.Gates(a, b, A_log, dt_bias, decay="exp" if output_g_exp else "log")
        return (shortconv.l2_norm(q) if apply_l2norm else q,
                shortconv.l2_norm(k) if apply_l2norm else k,
                v.unflatten(1, (-1, head_v_dim)).contiguous(), *shortconv.delta_gates(gates))

    made = {one.__name__: replaced.get(one.__name__, one) for one in (
        causal_conv1d_fn, causal_conv1d_update, compute_causal_conv1d_metadata,
        fused_post_conv_prep)}
    convolutions = {name: made[name] for name in ("causal_conv1d_fn", "causal_conv1d_update")}
    name = "compute_causal_conv1d_metadata"
    engine = types.SimpleNamespace(
        calls=calls,
        ops=add_module(monkeypatch, OPS, convolutions),
        metadata=add_module(monkeypatch, METADATA, {name: made[name]}),
        delta_net=add_module(monkeypatch, DELTA_NET, {
            "causal_conv1d_fn": made["causal_conv1d_fn"],
            "fused_post_conv_prep": made["fused_post_conv_prep"]}),
        short_conv=add_module(monkeypatch, SHORT_CONV, {**convolutions, "torch": torch}))
    sys.modules["vllm"].__version__ = "0.99.0"
    exec(DELTA_NET_CODE, vars(engine.delta_net))
    exec(replaced.get("short_conv_code", SHORT_CONV_CODE), vars(engine.short_conv))
    return engine


# After the order of operations in a layer with prompts: decodes first, prompts through
# fused_post_conv_prep. `use` says what happens to rows that are not prepared.
DELTA_NET_CODE = '''
def run(net, x, a, b, state, batch, use=lambda rows: rows.clone()):
    rows = causal_conv1d_fn(
        x.transpose(0, 1), net.weight, net.bias, activation="silu", conv_states=state,
        has_initial_state=batch.has_initial_state, cache_indices=batch.slots,
        query_start_loc=batch.query_start_loc, metadata=batch).transpose(0, 1)
    count = batch.num_decode_tokens if batch.is_split else 0
    prompts = rows[count:] if count else rows
    prepared = fused_post_conv_prep(
        conv_output=prompts, a=a[count:], b=b[count:], A_log=net.a_log, dt_bias=net.dt_bias,
        num_k_heads=net.k_heads, head_k_dim=net.k_dim, head_v_dim=net.v_dim, apply_l2norm=True,
        output_g_exp=False)
    return (*prepared, use(rows[:count]))
'''

SHORT_CONV_CODE = '''
class ShortConv:
    def forward_cuda(self, hidden_states, output):
        metadata = get_forward_context().attn_metadata
        metadata = metadata[self.prefix] if isinstance(metadata, dict) else None
        before, after, x = self.in_proj(hidden_states)[0].chunk(3, dim=-1)
        if metadata is None:
            output[:] = self.out_proj(after * (before * x).contiguous())[0]
            return
        state = self.kv_cache[0]
        state = state if is_conv_state_dim_first() else state.transpose(-1, -2)
        weight = self.conv.weight.view(self.conv.weight.size(0), self.conv.weight.size(2))
        count = metadata.num_decode_tokens
        total = count + metadata.num_prefill_tokens
        parts = []
        if count > 0:
            rows = causal_conv1d_update(
                before[:count] * x[:count], state, weight, self.conv.bias, activation=None,
                conv_state_indices=metadata.state_indices_tensor_d)
            parts.append(after[:count] * rows)
        if metadata.num_prefills > 0:
            rows = causal_conv1d_fn(
                (before[count:total] * x[count:total]).transpose(0, 1), weight, self.conv.bias,
                activation=None, conv_states=state, metadata=metadata,
                has_initial_state=metadata.has_initial_states_p,
                cache_indices=metadata.state_indices_tensor_p,
                query_start_loc=metadata.query_start_loc_p).transpose(0, 1)
            parts.append(after[count:total] * rows)
        output[:total] = self.out_proj(torch.vstack(parts))[0]
'''
