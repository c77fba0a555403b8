"""What the fronts of vLLM and SGLang cost on the host, in numbers that no machine changes: one call
of the core, five new tensors, and few calls of Python. And nothing of them stays: the rest of the
layer gets plain tensors, and torch sees its operators as without them.
"""

import sys
import types

import pytest

torch = pytest.importorskip("torch")

from grids import DEVICES  # noqa: E402
from shortconv import _core  # noqa: E402
from shortconv.compat._deferred import Deferred  # noqa: E402
from shortconv.compat.sglang import front as sglang  # noqa: E402
from shortconv.compat.sglang import triton  # noqa: E402
from shortconv.compat.vllm import front as vllm  # noqa: E402

pytestmark = pytest.mark.parametrize("device", DEVICES)
K_HEADS, V_HEADS, DIM = 2, 4, 32
# Found with Python 3.11 and torch 2.9: 29 and 48. They were 52 and 102 before this test.
VLLM_CALLS, SGLANG_CALLS = 33, 52


def never(*arguments, **named):
    raise AssertionError("a function of the engine was called")


class Net:
    """Arguments of a layer for one prompt of five tokens."""

    def __init__(self, device):
        make = lambda *shape: torch.randn(*shape, device=device).bfloat16()  # noqa: E731
        columns = (2 * K_HEADS + V_HEADS) * DIM
        ints = lambda *values: torch.tensor(  # noqa: E731
            values, dtype=torch.int32, device=device)
        self.x, self.weight = make(5, columns).T, make(columns, 4)
        self.a, self.b = make(5, V_HEADS), make(5, V_HEADS)
        self.a_log = torch.nn.Parameter(torch.rand(V_HEADS, device=device))
        self.dt_bias = torch.nn.Parameter(make(V_HEADS))
        self.sequences = {
            "conv_states": make(3, 3, columns).transpose(1, 2), "query_start_loc": ints(0, 5),
            "cache_indices": ints(2),
            "has_initial_state": torch.tensor([True], device=device)}
        self.metadata = types.SimpleNamespace(
            num_decodes=0, num_decode_tokens=0,
            prefill_query_start_loc=self.sequences["query_start_loc"])


_prep = vllm.fused_post_conv_prep_of(never)


def run_vllm(net):
    rows = vllm.deferred_conv1d_fn(
        net.x, net.weight, None, activation="silu", metadata=net.metadata, **net.sequences)
    return _prep(
        conv_output=rows.transpose(0, 1), a=net.a, b=net.b, A_log=net.a_log, dt_bias=net.dt_bias,
        num_k_heads=K_HEADS, head_k_dim=DIM, head_v_dim=DIM)


_conv = sglang.deferred_conv1d_fn_of(triton.causal_conv1d_fn)
_split = sglang.fused_qkv_split_gdn_prefill_of(never)
_gating = sglang.fused_gdn_gating_of(never)
chunk_gated_delta_rule = sglang.chunk_gated_delta_rule_of(
    lambda q, k, v, g, beta, **named: (q, k, v, g, beta))


class Kernel:
    def extend(self, q, k, v, g, beta, **named):
        return chunk_gated_delta_rule(q, k, v, g, beta, use_qk_l2norm_in_kernel=True)


class Dispatcher:
    extend_kernel = Kernel()
    extend = sglang.extend_of(
        lambda self, *five, **named: self.extend_kernel.extend(*five, **named))


def run_sglang(net):
    rows = _conv(net.x, net.weight, None, activation="silu", seq_lens_cpu=[5], **net.sequences)
    parts = _split(rows.transpose(0, 1)[:5], K_HEADS, K_HEADS, V_HEADS, DIM, DIM, DIM)
    gates = _gating(net.a_log, net.a, net.b, net.dt_bias)
    return Dispatcher().extend(*parts, *gates, ssm_states=None, cache_indices=None,
                               query_start_loc=None)


engines = pytest.mark.parametrize("run, most_calls", [
    (run_vllm, VLLM_CALLS), (run_sglang, SGLANG_CALLS)])


@engines
def test_the_layer_goes_on_with_plain_tensors(device, run, most_calls):
    assert not issubclass(Deferred, torch.Tensor)
    with torch.inference_mode():
        results = run(Net(device))
        assert [type(one) for one in results] == [torch.Tensor] * 5
        assert all(one.is_contiguous() for one in results)
        assert torch._C._len_torch_dispatch_stack() == torch._C._len_torch_function_stack() == 0
        # Operators on them take the same way as those on any other new tensor.
        keys = torch._C._dispatch_keys(torch.empty(1, device=device))
        assert all(torch._C._dispatch_keys(one) == keys for one in results)


@engines
def test_calls_of_python_are_few(device, run, most_calls):
    names = []

    def note(frame, event, argument):
        if event == "call":
            names.append(frame.f_code.co_name)

    with torch.inference_mode():
        net = Net(device)
        run(net)  # what is made once
        sys.setprofile(note)
        try:
            run(net)
        finally:
            sys.setprofile(None)
    assert len(names) <= most_calls, names


@engines
def test_only_the_results_are_allocated(device, run, most_calls, monkeypatch):
    calls = []
    core = _core.forward_groups
    monkeypatch.setattr(_core, "forward_groups", lambda *a: (calls.append(1), core(*a))[1])
    with torch.inference_mode():
        net = Net(device)
        run(net)
        with torch.autograd.profiler.profile() as profile:
            run(net)
    made = [one.name for one in profile.function_events if one.name.startswith("aten::empty")]
    # empty_like is counted with the empty_strided that it calls.
    assert len(made) - made.count("aten::empty_like") == 5, made
    assert not any(one.name in ("aten::copy_", "aten::cat", "aten::contiguous")
                   for one in profile.function_events)
    assert calls == [1, 1]
