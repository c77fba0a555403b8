"""shortconv.compat.causal_conv1d on the grid of causal-conv1d's own tests, without gradients, which
test_compat_gradients.py has."""

import inspect
import itertools
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from grids import DEVICES, TOLERANCES, assert_outputs, pick  # noqa: E402
from shortconv.compat import causal_conv1d as theirs  # noqa: E402
from shortconv.compat.causal_conv1d.causal_conv1d_interface import (  # noqa: E402
    causal_conv1d_fn,
    causal_conv1d_ref,
    causal_conv1d_update,
    causal_conv1d_update_ref,
)
from shortconv.compat.causal_conv1d.causal_conv1d_varlen import (  # noqa: E402
    causal_conv1d_varlen_states,
    causal_conv1d_varlen_states_ref,
)
from shortconv.compat.causal_conv1d.cpp_functions import (  # noqa: E402
    causal_conv1d_fwd_function,
    causal_conv1d_update_function,
)

LENGTHS = [1, 2, 8, 16, 32, 64, 128, 129, 130, 151, 256, 372, 512, 784, 1024, 1134, 2048, 4096]
pytestmark = [
    pytest.mark.parametrize("device", DEVICES), pytest.mark.usefixtures("without_gradients")]
types = pytest.mark.parametrize("dtype", list(TOLERANCES))
widths = pytest.mark.parametrize("width", [2, 3, 4])


@pytest.fixture
def without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def weights(device, dim, width, bias):
    return (torch.randn(dim, width, device=device),
            torch.randn(dim, device=device) if bias else None)


def slice_of_wider(device, dtype, batch, dim, tokens, channel_last):
    """x [batch, dim, tokens], channels 4096.. of a wider tensor."""
    offset = pick(device, 96, 4096)
    if channel_last:
        wide = torch.randn(batch, tokens, offset + dim + 64, device=device).to(dtype)
        return wide[:, :, offset : offset + dim].transpose(1, 2)
    wide = torch.randn(batch, offset + dim + 64, tokens, device=device).to(dtype)
    return wide[:, offset : offset + dim]


@types
@widths
@pytest.mark.parametrize("channel_last", [False, True])
def test_fn(device, dtype, width, channel_last):
    lengths = pick(device, LENGTHS[:10], LENGTHS)
    for dim, tokens in itertools.product(pick(device, [64], [64, 4096 + 32]), lengths):
        for bias, silu, initial, final in itertools.product([False, True], repeat=4):
            x = slice_of_wider(device, dtype, 2, dim, tokens, channel_last)
            weight, b = weights(device, dim, width, bias)
            states = None
            if initial:
                states = torch.randn(2, width - 1, dim, device=device).to(dtype).transpose(1, 2)
            before = None if states is None else states.clone()
            arguments = {"initial_states": states, "return_final_states": final,
                         "activation": "silu" if silu else None}
            out = causal_conv1d_fn(x, weight, b, **arguments)
            expected = causal_conv1d_ref(x, weight, b, **arguments)
            if final:
                (out, state), (expected, expected_state) = out, expected
                assert state.shape == (2, dim, width - 1)
                assert torch.equal(state, expected_state)
            assert_outputs(out, expected)
            assert out.stride() == torch.empty_like(x).stride()
            assert before is None or torch.equal(states, before)


def test_final_states_may_be_the_initial_ones(device):
    x = slice_of_wider(device, torch.bfloat16, 2, 64, 3, True)
    weight, bias = weights(device, 64, 4, True)
    states = torch.randn(2, 3, 64, device=device).bfloat16().transpose(1, 2)
    expected, final = causal_conv1d_ref(x, weight, bias, states, True, activation="swish")
    out, returned = causal_conv1d_fn(x, weight, bias, None, states, True, states, "swish")
    assert returned is states and torch.equal(states, final)
    assert_outputs(out, expected)


@types
@widths
@pytest.mark.parametrize("case", ["ascending", "padding at the end", "initial states"])
def test_fn_with_seq_idx(device, dtype, width, case):
    lengths = [8, 16, 63, 64, 65, 127, 128, 129, 151, 256, 257, 372] + pick(
        device, [], [512, 784, 1024, 1134, 2048, 4096])
    for dim, tokens in itertools.product(pick(device, [64], [64, 4096 + 32]), lengths):
        x = slice_of_wider(device, dtype, 3, dim, tokens, tokens % 4 > 0)
        weight, bias = weights(device, dim, width, tokens % 2 == 0)
        activation = "silu" if tokens % 3 else None
        seq_idx = torch.zeros(3, tokens, dtype=torch.int32, device=device)
        cuts = [torch.randperm(tokens - 1)[:4].add(1).sort().values.tolist() for _ in range(3)]
        for row, at in enumerate(cuts):
            for cut in at:
                seq_idx[row, cut:] += 1
            if case == "padding at the end":
                seq_idx[row, at[-1] :] = -1
        states = None
        if case == "initial states":
            states = torch.randn(3, width - 1, dim, device=device).to(dtype).transpose(1, 2)
        out = causal_conv1d_fn(x, weight, bias, seq_idx=seq_idx, initial_states=states,
                               activation=activation)
        expected = torch.zeros_like(x)
        for row, at in enumerate(cuts):
            for part, (begin, end) in enumerate(zip([0, *at], [*at, tokens])):
                if seq_idx[row, begin] >= 0:
                    expected[row : row + 1, :, begin:end] = causal_conv1d_ref(
                        x[row : row + 1, :, begin:end], weight, bias,
                        states[row : row + 1] if states is not None and part == 0 else None,
                        activation=activation)
        assert_outputs(out, expected)
        assert_outputs(out, causal_conv1d_ref(x, weight, bias, states, activation=activation,
                                              seq_idx=seq_idx))
        if case == "padding at the end":
            assert (out.transpose(1, 2)[seq_idx < 0] == 0).all()


@types
@widths
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("slots", [None, "permuted", "with padding"])
def test_update(device, dtype, width, circular, slots):
    batch = pick(device, 6, 64)
    dims, tokens = pick(device, [80], [2048, 2048 + 16, 4096]), [1, 4, 5]
    columns = [width - 1, width, width + 1, width + 8]
    for dim, count, length, bias, silu in itertools.product(
            dims, tokens, columns, [False, True], [False, True]):
        x = torch.randn(batch, count, dim, device=device).to(dtype).transpose(1, 2)
        pool = batch if slots is None else 10 * batch
        state = torch.randn(pool, length, dim, device=device).to(dtype).transpose(1, 2)
        weight, b = weights(device, dim, width, bias)
        activation = "silu" if silu else None
        indices, live = None, torch.arange(batch, device=device)
        if slots is not None:
            indices = torch.randperm(pool, device=device)[:batch].int()
        if slots == "with padding":
            indices[torch.randperm(batch, device=device)[: batch // 2]] = -1
            live = (indices >= 0).nonzero().squeeze(1)
        where = live if indices is None else indices[live].long()
        seqlens = torch.randint(0, 1024, (batch,), device=device).int() if circular else None
        expected_state, part = state.clone(), state[where]
        expected = torch.zeros_like(x)
        expected[live] = causal_conv1d_update_ref(
            x[live], part, weight, b, activation, None if seqlens is None else seqlens[live])
        expected_state[where] = part
        out = causal_conv1d_update(x, state, weight, b, activation=activation,
                                   cache_seqlens=seqlens, conv_state_indices=indices)
        assert torch.equal(state, expected_state)
        assert_outputs(out, expected)
        assert out.stride() == torch.empty_like(x).stride()


def test_update_of_one_token_without_a_token_axis(device):
    for length, layout in itertools.product([3, 4, 6], ["channels", "columns"]):
        x, state = torch.randn(5, 48, device=device), torch.randn(5, 48, length, device=device)
        if layout == "channels":
            state = state.transpose(1, 2).contiguous().transpose(1, 2)
        weight, bias = weights(device, 48, 4, True)
        expected_state = state.clone()
        expected = causal_conv1d_update_ref(x, expected_state, weight, bias, "silu")
        assert_outputs(causal_conv1d_update(x, state, weight, bias, "silu"), expected)
        assert torch.equal(state, expected_state)


@types
def test_varlen_states(device, dtype):
    for dim in pick(device, [64], [2048, 2048 + 16, 4096]):
        lengths = torch.randint(0, 32, (100,), device=device)
        bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        x = torch.randn(int(bounds[-1]), dim, device=device).to(dtype)
        for length in (20, 3):
            states = causal_conv1d_varlen_states(x, bounds, length)
            assert torch.equal(states, causal_conv1d_varlen_states_ref(x, bounds, length))
            assert states.stride(1) == 1


def test_low_level_functions(device):
    x = slice_of_wider(device, torch.float32, 2, 64, 9, True)
    weight, bias = weights(device, 64, 4, True)
    final = torch.empty(2, 3, 64, device=device).transpose(1, 2)
    out = causal_conv1d_fwd_function(x, weight, bias, None, None, final, True)
    expected, expected_final = causal_conv1d_ref(x, weight, bias, None, True, None, "silu")
    assert_outputs(out, expected)
    assert torch.equal(final, expected_final)
    state = final.clone()
    expected = causal_conv1d_update_ref(x[:, :, 0], state, weight, bias)
    out = causal_conv1d_update_function(x[:, :, 0], final, weight, bias, False, None, None)
    assert_outputs(out, expected)
    assert torch.equal(final, state)


def test_edges(device):
    x = torch.randn(2, 16, 0, device=device)
    weight, _ = weights(device, 16, 4, False)
    out, final = causal_conv1d_fn(x, weight, return_final_states=True)
    assert out.shape == x.shape and (final == 0).all()
    seq_idx = torch.zeros(2, 0, dtype=torch.int32, device=device)
    assert causal_conv1d_fn(x, weight, seq_idx=seq_idx).shape == x.shape
    x = torch.randn(1, 16, 8, device=device)
    with pytest.raises(NotImplementedError, match="^activation: is 'gelu'"):
        causal_conv1d_fn(x, weight, activation="gelu")
    with pytest.raises(ValueError, match="^return_final_states: cannot be combined with seq_idx"):
        causal_conv1d_fn(x, weight, seq_idx=seq_idx, return_final_states=True)


def test_signatures(device):
    def names(function):
        return ", ".join(inspect.signature(function).parameters)

    assert names(causal_conv1d_fn) == (
        "x, weight, bias, seq_idx, initial_states, return_final_states, final_states_out, "
        "activation")
    assert names(causal_conv1d_update) == (
        "x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices")
    assert names(causal_conv1d_varlen_states) == "x, cu_seqlens, state_len"


def test_install(device):
    code = """
import sys
from shortconv.compat import causal_conv1d as ours
ours.install()
ours.install()
import causal_conv1d, importlib.util
from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from causal_conv1d.causal_conv1d_interface import causal_conv1d_ref
from causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states
import causal_conv1d.cpp_functions
assert causal_conv1d is ours and importlib.util.find_spec("causal_conv1d") is not None
assert tuple(map(int, causal_conv1d.__version__.split("."))) >= (1, 6, 0)
ours.uninstall()
assert importlib.util.find_spec("causal_conv1d") is None
sys.modules["causal_conv1d"] = type(sys)("causal_conv1d")
try:
    ours.install()
except ImportError as error:
    assert "install(replace=True)" in str(error)
else:
    sys.exit("replaced the original")
ours.install(replace=True)
assert sys.modules["causal_conv1d"] is ours
"""
    if "causal_conv1d" in sys.modules and sys.modules["causal_conv1d"] is not theirs:
        pytest.skip("the original is installed")
    subprocess.run([sys.executable, "-c", code], check=True)
