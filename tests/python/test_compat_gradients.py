"""Gradients of shortconv.compat, with the tolerances of the original tests."""

import itertools

import pytest

torch = pytest.importorskip("torch")

from grids import DEVICES_WITH_GRADIENTS, TOLERANCES, assert_outputs, pick  # noqa: E402
from shortconv.compat import fla  # noqa: E402
from shortconv.compat.causal_conv1d.causal_conv1d_interface import (  # noqa: E402
    causal_conv1d_fn,
    causal_conv1d_ref,
)
from shortconv.compat.causal_conv1d.cpp_functions import (  # noqa: E402
    causal_conv1d_bwd_function,
    causal_conv1d_fwd_function,
)

types = pytest.mark.parametrize("dtype", list(TOLERANCES))
widths = pytest.mark.parametrize("width", [2, 3, 4])

pytestmark = pytest.mark.parametrize("device", DEVICES_WITH_GRADIENTS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(3)
    torch._dynamo.reset()


def leaf(device, dtype, *shape):
    return torch.randn(*shape, device=device).to(dtype).requires_grad_()


def doubled(*tensors):
    """The same values in float64, as leaves of another graph."""
    return [one if one is None else one.detach().double().requires_grad_() for one in tensors]


# ---- causal-conv1d ----


def assert_grads(actual, expected, weights=()):
    """Of rows and states the tolerance of outputs, of weights that of the original tests."""
    for one, other in zip(actual, expected):
        if one is None:
            continue
        if any(one is weight for weight in weights):
            scale = max(1, other.grad.abs().max().item())
            torch.testing.assert_close(
                one.grad.double(), other.grad, rtol=1e-3, atol=1e-3 * scale)
        else:
            assert_outputs(one.grad, other.grad)


@types
@widths
@pytest.mark.parametrize("channel_last", [False, True])
def test_causal_conv1d(device, dtype, width, channel_last):
    dim = pick(device, 72, 4096 + 32)
    options = itertools.product([None, "silu"], [False, True], [False, True], [False, True],
                                [1, 2, 8, 151])
    for activation, has_bias, has_initial, has_final, tokens in options:
        if channel_last:
            x = torch.randn(2, tokens, dim + 40, device=device).to(dtype)[..., 8 : dim + 8].mT
        else:
            x = torch.randn(2, dim + 40, tokens, device=device).to(dtype)[:, 8 : dim + 8]
        x = x.detach().requires_grad_()
        weight = leaf(device, torch.float32, dim, width)
        bias = leaf(device, torch.float32, dim) if has_bias else None
        initial = leaf(device, dtype, 2, dim, width - 1) if has_initial else None
        given = x, weight, bias, initial
        wide = doubled(*given)
        results = causal_conv1d_fn(x, weight, bias, None, initial, has_final, None, activation)
        expected = causal_conv1d_ref(*wide, has_final, None, activation)
        if not has_final:
            results, expected = [results], [expected]
        for one, other in zip(results, expected):
            assert one.dtype == dtype
            assert_outputs(one, other)
        seeds = [torch.randn_like(one) for one in results]
        torch.autograd.backward(results, seeds)
        torch.autograd.backward(expected, [one.double() for one in seeds])
        assert_grads(given, wide, (weight, bias))


@types
@widths
def test_seq_idx(device, dtype, width):
    for tokens in (1, 17, 151):
        lengths = torch.randint(1, 20, (tokens,), device=device)
        numbers = torch.repeat_interleave(torch.arange(tokens, device=device), lengths)[:tokens]
        seq_idx = torch.stack([numbers, torch.where(numbers == 0, -1, numbers)]).int()
        x, weight = leaf(device, dtype, 2, 40, tokens), leaf(device, torch.float32, 40, width)
        bias = leaf(device, torch.float32, 40)
        wide = doubled(x, weight, bias)
        out = causal_conv1d_fn(x, weight, bias, seq_idx, activation="silu")
        expected = causal_conv1d_ref(*wide, activation="silu", seq_idx=seq_idx)
        grad_out = torch.randn_like(out)
        out.backward(grad_out)
        expected.backward(grad_out.double())
        assert_grads((x, weight, bias), wide, (weight, bias))


def test_final_states_out(device):
    x, weight = leaf(device, torch.float32, 2, 8, 5), leaf(device, torch.float32, 8, 4)
    buffer = torch.empty(2, 8, 3, device=device)
    out, final = causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=buffer)
    assert final is buffer and torch.equal(final, x[:, :, 2:])
    final.sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 0, 1, 1, 1], device=device).expand(2, 8, 5))


@types
@pytest.mark.parametrize("channel_last", [False, True])
def test_the_low_level_functions(device, dtype, channel_last):
    x, initial = leaf(device, dtype, 2, 40, 9), leaf(device, dtype, 2, 40, 3)
    weight, bias = leaf(device, torch.float32, 40, 4), leaf(device, torch.float32, 40)
    out, final = causal_conv1d_fn(x, weight, bias, None, initial, True, None, "silu")
    seeds = torch.randn_like(out), torch.randn_like(final)
    torch.autograd.backward((out, final), seeds)
    expected = [one.grad for one in (x, weight, bias, initial)]
    wide = torch.empty(2, 60, 9, device=device, dtype=dtype)[:, 10:50]
    if channel_last:
        wide = torch.empty(2, 9, 60, device=device, dtype=dtype)[..., 10:50].mT
    for dx in (None, wide):
        grads = causal_conv1d_bwd_function(
            x, weight, bias, seeds[0], None, initial, seeds[1], dx, True, True)
        assert dx is None or grads[0] is dx
        for one, other in zip(grads, expected):
            assert torch.equal(one, other) and not one.requires_grad
    dx, dweight, dbias, dinitial = causal_conv1d_bwd_function(
        x, weight, None, seeds[0], None, None, None, None, False, False)
    assert dbias is None and dinitial is None and dweight.dtype == torch.float32
    *_, dinitial = causal_conv1d_bwd_function(
        x, weight, None, seeds[0], None, None, None, None, True, False)
    other = torch.zeros_like(initial).requires_grad_()
    causal_conv1d_fwd_function(x, weight, None, None, other, None, False).backward(seeds[0])
    assert torch.equal(dinitial, other.grad)


def test_shapes_of_states_are_checked(device):
    x, weight = leaf(device, torch.float32, 2, 8, 5), leaf(device, torch.float32, 8, 4)
    with pytest.raises(ValueError, match=r"^initial_states: is of shape \(2, 8, 4\); expected "):
        causal_conv1d_fn(x, weight, initial_states=torch.zeros(2, 8, 4, device=device))
    with pytest.raises(ValueError, match="^initial_states: dtype i32"):
        causal_conv1d_fn(x, weight, initial_states=torch.zeros(2, 8, 3, device=device).int())
    with pytest.raises(ValueError, match=r"^initial_state: is of shape \(2, 8, 3\); expected "):
        fla.causal_conv1d(x.mT, weight, initial_state=torch.zeros(2, 8, 3, device=device))


# ---- flash-linear-attention ----


def assert_ratio(actual, expected, ratio=1e-3):
    """The measure of fla's tests: root mean square of the error, relative to that of the values.
    One rounding to bf16 exceeds their bound, so the reference is rounded as well."""
    expected = expected.to(actual.dtype).double()
    error = (actual.double() - expected).square().mean().sqrt()
    assert not actual.isnan().any()
    assert error <= 1e-6 or error / expected.square().mean().sqrt() < ratio


def reference(x, weight, bias, residual, initial, bounds, activation):
    """Outputs [1, tokens, channels] and final states [sequences, channels, width]."""
    width, outs, finals = weight.shape[1], [], []
    for s, (begin, end) in enumerate(zip(bounds[:-1], bounds[1:])):
        history = x.new_zeros(width, x.shape[2]) if initial is None else initial[s].T
        values = torch.cat([history, x[0, begin:end]])
        y = sum(values[k + 1 : k + 1 + end - begin] * weight[:, k] for k in range(width))
        y = y if bias is None else y + bias
        outs.append(torch.nn.functional.silu(y) if activation else y)
        finals.append(values[end - begin :].T)
    out = torch.cat(outs)[None]
    return (out if residual is None else out + residual), torch.stack(finals)


@types
@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("with_final", [False, True])
@pytest.mark.parametrize("bounds", [[0, 9, 18], [0, 1, 3, 3, 17]])
def test_fla(device, dtype, width, with_final, bounds):
    is_dense, sequences = bounds[1] == 9, len(bounds) - 1
    for activation, has_bias, residual_is, resumed in itertools.product(
            ["swish", None], [False, True], ["x", "other", None], [False, True]):
        x = leaf(device, dtype, 1, bounds[-1], 32)
        weight = leaf(device, dtype, 32, width)
        bias = leaf(device, dtype, 32) if has_bias else None
        other = leaf(device, dtype, 1, bounds[-1], 32) if residual_is == "other" else None
        initial = leaf(device, dtype, sequences, 32, width) if resumed else None
        given = x, weight, bias, other, initial
        wide = doubled(*given)
        expected = reference(*wide[:3], wide[0] if residual_is == "x" else wide[3], wide[4], bounds,
                             activation)
        rows = x.view(2, 9, 32) if is_dense else x
        residual = rows if residual_is == "x" else None if other is None else other.view_as(rows)
        y, final = fla.causal_conv1d(
            rows, weight, bias, residual, initial, with_final, activation,
            cu_seqlens=None if is_dense else torch.tensor(bounds, device=device))
        assert y.is_contiguous() and y.dtype == dtype
        assert_ratio(y.view_as(x), expected[0])
        grad_out = torch.randn_like(x)
        results, seeds = [y], [grad_out.view_as(y)]
        if with_final:
            assert final.is_contiguous() and torch.equal(final.double(), expected[1])
            results.append(final)
            seeds.append(torch.randn_like(final))
        torch.autograd.backward(results, seeds)
        wide_seeds = [grad_out.double(), *[one.double() for one in seeds[1:]]]
        torch.autograd.backward(expected[: len(results)], wide_seeds)
        for one, other in zip(given, wide):
            if one is not None:
                # torch adds the gradients of y, residual and states in 16 bits, each rounded.
                assert_ratio(one.grad, other.grad, 1e-3 if dtype == torch.float32 else 6e-3)


def test_fla_layer_and_heads(device):
    x = leaf(device, torch.float32, 2, 9, 4, 8)
    weight = leaf(device, torch.float32, 32, 1, 3)
    y, _ = fla.causal_conv1d(x, weight)
    assert y.shape == x.shape
    y.square().sum().backward()
    grads = [x.grad.clone(), weight.grad.clone()]
    x.grad = weight.grad = None
    mask = torch.tensor([[0] * 3 + [1] * 6, [1] * 9], device=device)
    cache = torch.randn(2, 32, 3, device=device)
    before = cache.clone()
    rows = x.view(2, 9, 32) * 1
    y, state = fla.short_convolution(rows, weight, activation=None, mask=mask, cache=cache,
                                     output_final_state=True)
    (y.square().sum() + state.sum()).backward()
    assert torch.equal(cache, before) and not x.grad[0, :3].any() and x.grad[0, 3:].any()
    x.grad = weight.grad = None
    fla.short_convolution(x.view(2, 9, 32), weight, activation=None)[0].square().sum().backward()
    for one, other in zip((x.grad, weight.grad), grads):
        assert torch.equal(one, other)


def test_one_token_of_each_sequence_is_functional_while_training(device):
    weight = leaf(device, torch.float32, 8, 4)
    cache, x = torch.randn(3, 8, 4, device=device), torch.randn(3, 1, 8, device=device)
    y, state = fla.short_convolution(x, weight, cache=cache, output_final_state=True)
    assert state is not cache and torch.equal(state, torch.cat([cache[:, :, 1:], x.mT], 2))
    y.sum().backward()
    assert weight.grad.any()


def test_original_functions_are_kept_where_there_are_no_gradients(device):
    def original(x, weight, cp_context=None):
        return "original"

    x, weight = leaf(device, torch.float32, 1, 5, 8), leaf(device, torch.float32, 8, 4)
    call = fla._where_supported(frozenset({device}), original, fla.causal_conv1d)
    assert call(x, weight) == "original"
    assert torch.is_tensor(call(x.detach(), weight.detach())[0])
    call = fla._where_supported(fla._without_gradients(), original, fla.causal_conv1d)
    assert call(x, weight)[0].requires_grad and call(x, weight, cp_context=1) == "original"


# ---- Both ----


def test_compiled_with_fullgraph(device):
    bounds = torch.tensor([0, 5, 12], device=device)
    seq_idx = torch.tensor([[0] * 5 + [1] * 7], device=device)
    parameters = [leaf(device, torch.float32, 8, 4), leaf(device, torch.float32, 8),
                  leaf(device, torch.float32, 1, 8, 3), leaf(device, torch.float32, 2, 8, 4)]

    def layer(x, weight, bias, initial, state):
        y = causal_conv1d_fn(x.mT, weight, bias, seq_idx, activation="silu")
        y, final = causal_conv1d_fn(y, weight, bias, None, initial, True)
        y, last = fla.causal_conv1d(y.mT, weight, bias, x, state, True, cu_seqlens=bounds)
        return y.square().sum() + final.sum() + last.sum()

    x = torch.randn(1, 12, 8, device=device)
    expected = torch.autograd.grad(layer(x, *parameters), parameters)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for one, other in zip(torch.autograd.grad(compiled(x, *parameters), parameters), expected):
        torch.testing.assert_close(one, other)
