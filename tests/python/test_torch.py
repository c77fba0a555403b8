"""shortconv.torch: torch.compile, CUDA graphs, side streams, gradients."""

import inspect

import pytest

torch = pytest.importorskip("torch")

import shortconv  # noqa: E402
import shortconv.torch as conv  # noqa: E402
from shortconv._core import FLATTENED  # noqa: E402

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(params=DEVICES)
def device(request):
    torch.manual_seed(7)
    return request.param


def tensors(device, tokens=12, channels=32, width=4, slots=4, dtype=torch.bfloat16):
    def make(*shape):
        return torch.randn(*shape, device=device).to(dtype)

    return (make(tokens, channels), make(channels, width), make(channels),
            make(slots, width - 1, channels))


def bounds_of(device, *values):
    return torch.tensor(values, dtype=torch.int32, device=device)


def test_every_type(device):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for weight_dtype in (torch.float32, dtype):
            x, weight, bias, _ = tensors(device, dtype=dtype)
            out = conv.forward(x, weight.to(weight_dtype), bias.to(weight_dtype), activation="silu")
            exact = shortconv.reference.forward(
                x.cpu(), weight.cpu(), bias.cpu(), activation="silu",
                out=torch.empty(x.shape, dtype=torch.float64))
            assert out.dtype == dtype
            bound = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 4.1e-3}[dtype]
            torch.testing.assert_close(out.cpu().double(), exact, rtol=bound, atol=bound / 100)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_equals_eager(device, backend):
    x, weight, bias, state = tensors(device)
    bounds, slots = bounds_of(device, 0, 5, 12), bounds_of(device, 2, 0)

    def layer(x, state):
        y = conv.forward(x * 2, weight, bias, state=state, query_start_loc=bounds,
                         read_slots=slots, initial_state=True, activation="silu")
        drafts = (y + 1).reshape(2, 6, -1)
        states = torch.zeros(2, 6, 3, 32, dtype=x.dtype, device=x.device)
        z = conv.verify(drafts, weight, state=state, read_slots=slots, intermediate_states=states)
        conv.commit(states.view(1, 2, 18, 32), state.view(1, *state.shape), bounds[:2], width=4,
                    slots=slots)
        return z + 1, conv.decode(z[:, 0], weight, state=state, read_slots=slots)

    eager_state, compiled_state = state.clone(), state.clone()
    expected = layer(x, eager_state)
    actual = torch.compile(layer, fullgraph=True, backend=backend)(x, compiled_state)
    for one, other in zip(actual, expected):
        assert torch.equal(one, other)
    assert torch.equal(compiled_state, eager_state)
    assert not torch.equal(state, eager_state)


def test_compiled_with_out_and_in_place(device):
    x, weight, _, state = tensors(device, tokens=4)

    def layer(x, out, state):
        conv.decode(x, weight, state=state, out=x)
        return conv.decode(x, weight, state=state, out=out)

    expected_x, expected, expected_state = x.clone(), torch.empty_like(x), state.clone()
    layer(expected_x, expected, expected_state)
    out = torch.empty_like(x)
    torch.compile(layer, fullgraph=True, backend="aot_eager")(x, out, state)
    assert torch.equal(x, expected_x) and torch.equal(out, expected)
    assert torch.equal(state, expected_state)


def test_operator_declares_what_it_writes(device):
    x, weight, bias, state = tensors(device, dtype=torch.float32)
    torch.library.opcheck(
        torch.ops.shortconv.run.default,
        (0, x, torch.empty_like(x), weight, bias),
        {"state": state, "initial_state": True, "activation": "silu"},
        test_utils=("test_schema", "test_faketensor"))


def test_compiled_refuses_a_stream(device):
    x, weight, _, _ = tensors(device)
    with pytest.raises(Exception, match="stream: is given"):
        torch.compile(lambda x: conv.forward(x, weight, stream=1), fullgraph=True,
                      backend="eager")(x)


def test_backward_raises(device):
    x, weight, _, _ = tensors(device, dtype=torch.float32)
    out = conv.forward(x, weight.requires_grad_())
    assert out.requires_grad
    with pytest.raises(NotImplementedError, match="shortconv: has no backward pass here"):
        out.sum().backward()
    with torch.no_grad():
        assert not conv.forward(x, weight).requires_grad


def test_errors_come_from_the_core(device):
    x, weight, _, _ = tensors(device)
    with pytest.raises(ValueError, match="weight: axis 0 .'channels'. is 31, but x made"):
        conv.forward(x, weight[:31])


@needs_gpu
def test_the_current_stream_is_used():
    x, weight, _, _ = tensors("cuda", tokens=4096, channels=1024)
    expected = conv.forward(x, weight)
    source = x.clone()
    x.zero_()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    for explicit in (None, side, side.cuda_stream):
        x.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)  # a kernel on another stream would read zeros
            x.copy_(source)
            if explicit is None:
                out = conv.forward(x, weight)
        if explicit is not None:
            out = conv.forward(x, weight, stream=explicit)
        side.synchronize()
        assert torch.equal(out, expected)


@needs_gpu
def test_a_captured_call_supports_other_lengths_and_slots():
    x, weight, bias, state = tensors("cuda", tokens=64, channels=256, slots=8)
    bounds, slots = bounds_of("cuda", 0, 1, 2, 64), bounds_of("cuda", 0, 1, 2)
    arguments = {"query_start_loc": bounds, "read_slots": slots, "initial_state": True}
    conv.forward(x, weight, bias, state=state.clone(), **arguments)  # loads the kernel
    pool, out = state.clone(), torch.empty_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        conv.forward(x, weight, bias, state=pool, out=out, **arguments)
    for cuts, where in (((0, 30, 31, 60), (7, -1, 4)), ((0, 0, 64, 64), (1, 2, 3))):
        bounds.copy_(bounds_of("cuda", *cuts))
        slots.copy_(bounds_of("cuda", *where))
        pool.copy_(state)
        x.normal_()
        graph.replay()
        other = state.clone()
        expected = conv.forward(x, weight, bias, state=other, **arguments)
        assert torch.equal(out, expected) and torch.equal(pool, other)


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_call_runs_on_the_device_of_its_tensors():
    x, weight, _, _ = tensors("cuda:1")
    out = conv.forward(x, weight)
    assert torch.cuda.current_device() == 0 and out.device == x.device
    assert torch.equal(out.cpu(), conv.forward(x.to("cuda:0"), weight.to("cuda:0")).cpu())


@needs_gpu
def test_odd_addresses_and_pitches_on_a_gpu():
    x, weight, bias, state = tensors("cuda", tokens=50, channels=96)
    wide = torch.zeros(50, 301, dtype=x.dtype, device="cuda")
    for offset in (0, 1, 8):
        view = wide[:, offset : offset + 96]
        view.copy_(x)
        pool, other = state.clone(), state.clone().transpose(1, 2).contiguous().transpose(1, 2)
        expected = conv.forward(x, weight, bias, state=pool, initial_state=True)
        actual = conv.forward(view, weight, bias, state=other, initial_state=True)
        assert torch.equal(actual, expected)
        assert torch.equal(other, pool)


def test_the_compiled_operators_take_every_argument():
    def names(*functions):
        found = {name for one in functions for name in inspect.signature(one).parameters}
        return found - {"stream"}

    def schema(operator):
        return {argument.name for argument in operator.default._schema.arguments}

    operators = shortconv.forward, shortconv.decode, shortconv.verify
    assert schema(torch.ops.shortconv.run) == names(*operators) | {"op"}
    for function in (shortconv.backward, shortconv.commit, shortconv.block_snapshots,
                     shortconv.tree_parents):
        assert schema(getattr(torch.ops.shortconv, function.__name__)) == names(function)


# The operator passes the common arguments by position and the others by name.
@pytest.mark.parametrize("name, value", [
    ("activation", "relu"), ("padded_rows", "nan"), ("base_column", 99), ("residual", True),
    ("shift_full_state", True), ("update_state", True), ("dilation", 0), ("backend", "abacus"),
    ("threads", -1)])
def test_arguments_of_the_compiled_operator_reach_their_places(device, name, value):
    x, weight, bias, state = tensors(device)
    conflicting = {"residual": {"input_gate": x},
                   "shift_full_state": {"read_offsets": bounds_of(device, 0)}}.get(name, {})
    named = {"base_column": "state", "update_state": "op"}.get(name, name)
    with pytest.raises(ValueError, match=f"^{named}: "):
        torch.ops.shortconv.run(0, x, torch.empty_like(x), weight, bias, state=state,
                                **{name: value}, **conflicting)


def test_functions_of_other_libraries_compile_with_fullgraph(device):
    from shortconv.compat import causal_conv1d, fla, sglang, vllm

    x, weight, bias, state = tensors(device)
    bounds, slots = bounds_of(device, 0, 5, 12), bounds_of(device, 2, 0)
    cache = torch.zeros(12, 32, 4, dtype=x.dtype, device=x.device)
    seq_idx = bounds_of(device, *[0] * 5, *[1] * 4, *[2] * 3)[None]

    def layer(x, state, cache):
        y, by_channels = x.t() + 1, state.transpose(1, 2)
        y = sglang.causal_conv1d_fn(y, weight, bias, by_channels, bounds, cache_indices=slots)
        y = vllm.causal_conv1d_fn(y, weight, bias, by_channels, bounds, slots, null_block_id=None)
        y = causal_conv1d.causal_conv1d_fn(y[None], weight, bias, activation="silu")
        y = causal_conv1d.causal_conv1d_fn(y, weight, bias, seq_idx, activation="silu")
        y, _ = fla.causal_conv1d(y.transpose(1, 2), weight, bias, cu_seqlens=bounds)
        y, _ = fla.causal_conv1d_update(y, cache, weight=weight)
        y = y[0, :2].clone()
        vllm.causal_conv1d_update(y, by_channels, weight, bias, True, slots, null_block_id=None)
        y = sglang.causal_conv1d_update(y, by_channels, weight, bias, conv_state_indices=slots)
        return causal_conv1d.causal_conv1d_update(y, by_channels[:2], weight, bias)

    expected = [state.clone(), cache.clone()]
    actual = [state.clone(), cache.clone()]
    with torch.no_grad():
        out = layer(x, *expected)
        again = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, *actual)
    assert torch.equal(again, out) and out.abs().sum() > 0
    for one, other, before in zip(actual, expected, (state, cache)):
        assert torch.equal(one, other) and not torch.equal(one, before)


def test_flattened_batches(device):
    x, weight, bias, _ = tensors(device)
    bounds = bounds_of(device, 0, 4, 7, 12)
    expected = conv.forward(x, weight, bias, query_start_loc=bounds)
    wide = torch.zeros(3, 5, 32, dtype=x.dtype, device=device)
    for given in (x[None], x[:, None], x.view(3, 4, 32)):
        out = torch.empty_like(given)
        conv.run(FLATTENED, given, out, weight, bias, None, None, bounds)
        assert torch.equal(out.view(12, 32), expected)
    with pytest.raises(ValueError, match="^x: rows are not evenly spaced"):
        conv.run(FLATTENED, wide[:, :4], wide[:, :4], weight, bias, None, None, bounds)
