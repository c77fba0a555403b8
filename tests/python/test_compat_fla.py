"""shortconv.compat.fla on the grid of flash-linear-attention's tests, without gradients, which
test_compat_gradients.py has."""

import itertools

import pytest

torch = pytest.importorskip("torch")

from grids import DEVICES  # noqa: E402
from shortconv.compat.fla import (  # noqa: E402
    causal_conv1d,
    causal_conv1d_update,
    short_convolution,
)

pytestmark = pytest.mark.parametrize("device", DEVICES)
types = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
SHAPES = [(2, 64, 128, 3), (2, 128, 128, 4), (2, 500, 1024, 3), (2, 1024, 1024, 4)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(42)
    with torch.no_grad():
        yield


def reference(x, weight, bias, residual, activation, history=None):
    """One sequence [tokens, channels] in float64: output and the newest `width` inputs."""
    width = weight.shape[1]
    if history is None:
        history = x.new_zeros(width, x.shape[1])
    values = torch.cat([history, x]).double()
    y = sum(values[tap + 1 : tap + 1 + len(x)] * weight[:, tap].double() for tap in range(width))
    y = y if bias is None else y + bias.double()
    y = torch.nn.functional.silu(y) if activation else y
    return y if residual is None else y + residual.double(), torch.cat([history, x])[-width:]


def assert_ratio(actual, expected, ratio=1e-3):
    """The measure of fla's tests: root mean square of the error, relative to that of the values.
    One rounding to bf16 exceeds their bound, so the reference is rounded as well."""
    expected = expected.to(actual.dtype).double()
    error = (actual.double() - expected).square().mean().sqrt()
    assert not actual.isnan().any()
    assert error <= 1e-6 or error / expected.square().mean().sqrt() < ratio


def make(device, dtype, *shape):
    return torch.randn(*shape, device=device).to(dtype)


@types
@pytest.mark.parametrize("shape", SHAPES)
def test_dense(device, dtype, shape):
    batch, tokens, channels, width = shape
    for activation, bias, residual in itertools.product(["swish", None], [0, 1], [0, 1]):
        x = make(device, dtype, batch, tokens, channels)
        weight = make(device, dtype, channels, width)
        b = make(device, dtype, channels) if bias else None
        r = make(device, dtype, batch, tokens, channels) if residual else None
        y, final = causal_conv1d(x, weight, b, r, activation=activation, output_final_state=True)
        assert y.dtype == dtype and y.is_contiguous() and final.is_contiguous()
        for row in range(batch):
            added = None if r is None else r[row]
            expected, state = reference(x[row], weight, b, added, activation)
            assert_ratio(y[row], expected)
            assert torch.equal(final[row], state.T)


@types
@pytest.mark.parametrize(
    "tokens, channels, width", [(500, 128, 3), (1024, 200, 4), (1024, 1024, 4)])
@pytest.mark.parametrize("resumed", [False, True])
def test_packed(device, dtype, tokens, channels, width, resumed):
    for bound_type, cuts in ((torch.int32, [1, 3, tokens - 1]), (torch.int64, [0, 100, 100])):
        bounds = [0, *cuts, tokens]
        x, weight = make(device, dtype, 1, tokens, channels), make(device, dtype, channels, width)
        bias, residual = make(device, dtype, channels), make(device, dtype, 1, tokens, channels)
        initial = make(device, dtype, 4, channels, width) if resumed else None
        before = None if initial is None else initial.clone()
        y, final = causal_conv1d(
            x, weight, bias, residual, initial, True, "silu",
            cu_seqlens=torch.tensor(bounds, dtype=bound_type, device=device))
        for s, (begin, end) in enumerate(zip(bounds[:-1], bounds[1:])):
            history = initial[s].T if resumed else None
            rows = slice(begin, end)
            expected, state = reference(x[0, rows], weight, bias, residual[0, rows], "silu",
                                        history)
            if begin < end:
                assert_ratio(y[0, begin:end], expected)
            assert torch.equal(final[s], state.T)
        assert before is None or torch.equal(initial, before)


@types
def test_decode_equals_prefill_bit_for_bit(device, dtype):
    x, weight = make(device, dtype, 3, 20, 96), make(device, dtype, 96, 4)
    whole, final = causal_conv1d(x, weight, output_final_state=True, activation="silu")
    cache = torch.zeros(3, 96, 4, dtype=dtype, device=device)
    for token in range(20):
        one = x[:, token : token + 1]
        if token % 2:
            y, returned = short_convolution(one, weight.unsqueeze(1), cache=cache,
                                            output_final_state=True)
        else:
            y, returned = causal_conv1d_update(one, cache, weight=weight, activation="silu")
        assert returned is cache and torch.equal(y, whole[:, token : token + 1])
    assert torch.equal(cache, final)


def test_shapes_of_a_decode(device):
    x, weight = make(device, torch.bfloat16, 3, 96), make(device, torch.bfloat16, 96, 4)
    cache, residual = make(device, torch.bfloat16, 3, 96, 4), make(device, torch.bfloat16, 3, 96)
    expected_cache = torch.cat([cache[:, :, 1:], x[:, :, None]], 2)
    expected, _ = causal_conv1d(x[:, None], weight, initial_state=cache)
    for shape in ((3, 96), (3, 1, 96), (1, 3, 96), (3, 1, 2, 48)):
        shifted, added = cache.clone(), None if len(shape) == 2 else residual.view(shape)
        y, _ = causal_conv1d_update(x.view(shape), shifted, added, weight=weight)
        assert y.shape == shape and torch.equal(shifted, expected_cache)
        plain = expected.view(shape)
        assert torch.equal(y, plain if added is None else plain + added)


@types
@pytest.mark.parametrize("width", [2, 3, 4])
def test_caches_of_more_columns_and_slots(device, dtype, width):
    x, weight = make(device, dtype, 3, 96), make(device, dtype, 96, width)
    for columns, slots, innermost in itertools.product(
            [width - 1, width, width + 3], [3, 5], ["columns", "channels"]):
        cache = make(device, dtype, slots, 96, columns)
        if innermost == "channels":
            cache = cache.transpose(1, 2).contiguous().transpose(1, 2)
        expected_cache = cache.clone()
        expected_cache[:3] = torch.cat([cache[:3], x[:, :, None]], 2)[:, :, 1:]
        history = torch.cat([cache[:3, :, :1], cache[:3, :, columns + 1 - width :]], 2)
        expected, _ = causal_conv1d(x[:, None], weight, initial_state=history)
        y, returned = causal_conv1d_update(x, cache, weight=weight)
        assert returned is cache and torch.equal(cache, expected_cache)
        assert torch.equal(y, expected.view(3, 96))


def test_prefill_with_a_cache_shorter_than_the_width(device):
    x, weight = make(device, torch.float32, 2, 7, 32), make(device, torch.float32, 32, 4)
    whole, final = causal_conv1d(x, weight, output_final_state=True)
    state = None
    for begin, end in ((0, 2), (2, 3), (3, 7)):
        y, state = causal_conv1d(x[:, begin:end], weight, initial_state=state,
                                 output_final_state=True)
        assert torch.equal(y, whole[:, begin:end])
    assert torch.equal(state, final)


@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_states_of_another_type_and_short_sequences(device, tokens, dtype):
    x, weight = make(device, torch.bfloat16, 2, tokens, 32), make(device, torch.float32, 32, 4)
    initial = make(device, dtype, 2, 32, 4)
    y, final = causal_conv1d(x, weight, None, None, initial, True)
    assert final.dtype == x.dtype and final.is_contiguous()
    kept = torch.cat([initial.to(x.dtype), x.transpose(1, 2)], 2)[:, :, -4:]
    assert torch.equal(final, kept)
    assert torch.equal(y, causal_conv1d(x, weight, initial_state=initial)[0])
    bounds = torch.tensor([0, tokens, 2 * tokens], device=device)
    packed, states = causal_conv1d(x.reshape(1, 2 * tokens, 32), weight, None, None, initial, True,
                                   cu_seqlens=bounds)
    assert torch.equal(packed.view(y.shape), y) and torch.equal(states, kept)


def test_packed_with_as_many_tokens_as_sequences(device):
    x, weight = make(device, torch.float32, 1, 3, 32), make(device, torch.float32, 32, 4)
    for bounds in ([0, 1, 2, 3], [0, 2, 2, 3]):
        cache = make(device, torch.float32, 3, 32, 4)
        cu_seqlens = torch.tensor(bounds, device=device)
        expected, final = causal_conv1d(x, weight, None, None, cache.clone(), True, "silu",
                                        cu_seqlens=cu_seqlens)
        y, returned = short_convolution(x.clone(), weight, cache=cache, output_final_state=True,
                                        cu_seqlens=cu_seqlens)
        assert torch.equal(y, expected) and torch.equal(returned, final) and returned is cache


def test_residual_that_is_x(device):  # Canon layers
    x, weight = make(device, torch.bfloat16, 2, 20, 64), make(device, torch.bfloat16, 64, 4)
    y, final = causal_conv1d(x, weight, residual=x, activation="silu", output_final_state=True)
    other, state = causal_conv1d(x, weight, residual=x.clone(), activation="silu",
                                 output_final_state=True)
    assert torch.equal(y, other) and torch.equal(final, state)


def test_heads_masks_and_views(device):
    x, weight = make(device, torch.float32, 2, 9, 4, 8), make(device, torch.float32, 32, 3)
    y, _ = causal_conv1d(x, weight)
    assert y.shape == x.shape
    assert torch.equal(y.view(2, 9, 32), causal_conv1d(x.view(2, 9, 32), weight)[0])
    wide = make(device, torch.float32, 2, 9, 100)
    view = wide[:, :, 10:42]
    assert torch.equal(causal_conv1d(view, weight)[0], causal_conv1d(view.contiguous(), weight)[0])
    mask = torch.tensor([[0] * 3 + [1] * 6, [1] * 9], device=device)
    masked = view * mask.unsqueeze(-1)
    y, _ = short_convolution(view, weight, mask=mask)
    assert torch.equal(view, masked)
    assert torch.equal(y, causal_conv1d(masked, weight, activation="silu")[0])


def test_refusals(device):
    x, weight = make(device, torch.float32, 2, 4, 8), make(device, torch.float32, 8, 4)
    with pytest.raises(NotImplementedError, match="^weight: is None"):
        causal_conv1d(x)
    with pytest.raises(NotImplementedError, match="^cp_context: "):
        causal_conv1d(x, weight, cp_context=object())
    with pytest.raises(ValueError, match="^backend: is 'abacus'"):
        causal_conv1d(x, weight, backend="abacus")
    with pytest.raises(ValueError, match="^x: batch is 2; expected 1 with cu_seqlens"):
        causal_conv1d(x, weight, cu_seqlens=torch.tensor([0, 4], device=device))
    with pytest.raises(NotImplementedError, match="^seq_idx: "):
        causal_conv1d(x, weight, seq_idx=torch.zeros(2, 4, device=device))


def test_install(device):
    pytest.importorskip("fla.modules")
    import fla.modules.causal_conv1d as module
    from shortconv.compat import fla as ours

    original = module.causal_conv1d
    undo = ours.install()
    try:
        assert module.causal_conv1d is not original
        layer = module.ShortConvolution(16, 4, activation="silu").to(device)
        x = make(device, torch.float32, 2, 5, 16)
        y, cache = layer(x, output_final_state=True)
        expected, state = short_convolution(x, layer.weight, output_final_state=True)
        assert torch.equal(y, expected) and torch.equal(cache, state)
        y, _ = layer(x[:, :1], cache=cache, output_final_state=True)
        assert torch.equal(y, short_convolution(x[:, :1], layer.weight, cache=state)[0])
        assert torch.equal(cache, state)
    finally:
        undo()
    assert module.causal_conv1d is original
