"""short_conv and ShortConv1d: gradients in double precision against finite differences, in others
against torch's own convolution, and all that torch does with functions that have gradients."""

import copy

import pytest

torch = pytest.importorskip("torch")

from grids import DEVICES_WITH_GRADIENTS  # noqa: E402
from shortconv import _core  # noqa: E402
from shortconv.torch import ShortConv1d, short_conv  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

NAMES = ("x", "weight", "bias", "initial_state", "input_gate", "output_gate")
CALLS = {
    "dense": {},
    "packed": {"query_start_loc": torch.tensor([0, 3, 3, 4, 9], dtype=torch.int32)},
    "seq_idx": {"seq_idx": torch.tensor([4, 4, 4, -1, 0, 0, 0, 0, 7])},
    "dilated": {"dilation": 2},
    "residual": {"residual": True},
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(7)
    torch._dynamo.reset()


@pytest.fixture(params=DEVICES_WITH_GRADIENTS)
def device(request):
    return request.param


def tensors(call="dense", dtype=torch.float32, channels=4, width=3, device="cpu"):
    """Inputs by name that need a gradient, and the other arguments of the call."""
    options = {name: one.to(device) if isinstance(one, torch.Tensor) else one
               for name, one in CALLS[call].items()}
    rows = (9, channels) if call in ("packed", "seq_idx") else (2, 9, channels)
    sequences = {"packed": 4, "seq_idx": 1}.get(call, 2)
    shapes = [rows, (channels, width), (channels,),
              (sequences, (width - 1) * options.get("dilation", 1), channels), rows, rows]
    inputs = {name: torch.randn(shape, dtype=torch.float64).to(device, dtype).requires_grad_()
              for name, shape in zip(NAMES, shapes)}
    if call == "residual":
        del inputs["input_gate"], inputs["output_gate"]
    return inputs, options


def expected_of(inputs, options, activation, grad_out, grad_final=None):
    """Gradients in float64 by torch's convolution, of each sequence alone."""
    wide = {name: one.detach().double().requires_grad_() for name, one in inputs.items()}
    x, dilation = wide["x"], options.get("dilation", 1)
    values = x
    if "input_gate" in wide:  # its rounding counts as the identity
        product = x * wide["input_gate"]
        values = product + (product.to(inputs["x"].dtype).double() - product).detach()
    out, finals = torch.zeros_like(x), []
    if "query_start_loc" in options:
        bounds = options["query_start_loc"].tolist()
        parts = [slice(begin, end) for begin, end in zip(bounds[:-1], bounds[1:])]
    else:
        parts = list(range(x.shape[0]))
    for s, part in enumerate(parts):
        history = torch.cat([wide["initial_state"][s], values[part]]).T[None]
        a = values[part]
        if len(a) > 0:  # torch refuses sequences without tokens
            a = torch.nn.functional.conv1d(
                history, wide["weight"][:, None], wide.get("bias"), dilation=dilation,
                groups=x.shape[-1])[0].T
        a = torch.nn.functional.silu(a) if activation else a
        a = a * wide["output_gate"][part] if "output_gate" in wide else a
        out[part] = a + values[part] if options.get("residual") else a
        finals.append(history[0].T[values[part].shape[0] :])
    results = [out, torch.stack(finals)]
    seeds = [grad_out.double(), torch.zeros_like(results[1]) if grad_final is None
             else grad_final.double()]
    torch.autograd.backward(results, seeds)
    return out.detach(), {name: one.grad for name, one in wide.items()}


def assert_gradients(inputs, expected):
    for name, one in inputs.items():
        assert one.grad.dtype == one.dtype and one.grad.shape == one.shape
        # One rounding to the type of the input, after sums in fp32.
        unit = torch.finfo(one.dtype).eps
        bound = expected[name].abs() * unit + 1e-5 * max(1, expected[name].abs().max().item())
        assert ((one.grad.double() - expected[name]).abs() <= bound).all(), name


# ---- Values ----


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("call", CALLS)
def test_gradients_equal_finite_differences(call, activation):
    inputs, options = tensors(call, torch.float64)

    def function(*values):
        return short_conv(**dict(zip(inputs, values)), **options, activation=activation,
                          return_final_state=call != "seq_idx", backend="reference")

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("call", sorted({*CALLS} - {"seq_idx"}))
def test_gradients_equal_those_of_torch(device, call, activation, dtype):
    for width in (2, 4):
        inputs, options = tensors(call, dtype, 40, width, device)
        out, final = short_conv(**inputs, **options, activation=activation, return_final_state=True)
        grads = torch.randn_like(out), torch.randn_like(final)
        expected_out, expected = expected_of(inputs, options, activation, *grads)
        torch.testing.assert_close(
            out.double(), expected_out, rtol=torch.finfo(dtype).eps, atol=1e-5)
        torch.autograd.backward([out, final], grads)
        assert_gradients(inputs, expected)


def test_weights_in_fp32_beside_rows_in_bf16(device):
    x = torch.randn(2, 30, 16, device=device).bfloat16().requires_grad_()
    weight = torch.randn(16, 4, device=device, requires_grad=True)
    out = short_conv(x, weight, activation="silu", out_dtype=torch.float32)
    grad_out = torch.randn_like(out)
    inputs = {"x": x, "weight": weight}
    state = torch.zeros(2, 3, 16, device=device)
    _, expected = expected_of({**inputs, "initial_state": state}, {}, "silu", grad_out)
    out.backward(grad_out)
    assert out.dtype == weight.grad.dtype == torch.float32 and x.grad.dtype == torch.bfloat16
    assert_gradients(inputs, expected)


def test_a_cut_sequence_has_the_same_bits(device):
    x = torch.randn(40, 24, device=device)
    weight, grad_out = torch.randn(24, 4, device=device), torch.randn(40, 24, device=device)
    whole = x.clone().requires_grad_()
    short_conv(whole, weight, activation="silu").backward(grad_out)
    for cut in (1, 2, 3, 20, 38):
        rows = x.clone().requires_grad_()
        first, state = short_conv(rows[:cut], weight, activation="silu", return_final_state=True)
        second = short_conv(rows[cut:], weight, activation="silu", initial_state=state)
        torch.cat([first, second]).backward(grad_out)
        assert torch.equal(rows.grad, whole.grad)


# ---- What is computed and kept ----


@pytest.mark.parametrize("name", NAMES)
def test_only_needed_gradients_are_computed(monkeypatch, name):
    inputs, _ = tensors()
    for one in inputs.values():
        one.requires_grad_(False)
    inputs[name].requires_grad_()
    seen = []

    def spy(*values):
        named = dict(zip(values[8::2], values[9::2]))
        named.update(zip(("grad_x", "grad_weight", "grad_bias"), values[4:7]))
        seen.extend(key for key, value in named.items()
                    if key.startswith("grad_") and value is not None)
        return backward(*values)

    backward = _core.backward
    monkeypatch.setattr(_core, "backward", spy)
    short_conv(**inputs).sum().backward()
    assert seen == [f"grad_{name}"]
    assert [key for key, one in inputs.items() if one.grad is not None] == [name]


def test_nothing_is_kept_without_gradients():
    inputs, _ = tensors()
    with torch.no_grad():
        assert short_conv(**inputs).grad_fn is None
    assert short_conv(**{name: one.detach() for name, one in inputs.items()}).grad_fn is None


@pytest.mark.parametrize("compiled", [False, True])
def test_the_result_may_be_changed_in_place(compiled):
    inputs, _ = tensors()
    grads = []
    for factor in (1, 3):

        def layer(inputs, factor=factor):
            return short_conv(**inputs, activation="silu").mul_(factor)

        call = torch.compile(layer, backend="aot_eager") if compiled else layer
        grads.append(torch.autograd.grad(call(inputs).sum(), list(inputs.values())))
    for one, other in zip(*grads):
        torch.testing.assert_close(one * 3, other)


def test_an_input_that_changed_is_noticed():
    inputs, _ = tensors()
    x = inputs["x"] * 1
    out = short_conv(x, inputs["weight"])
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_the_initial_state_is_not_written():
    inputs, options = tensors("packed")
    before = inputs["initial_state"].detach().clone()
    for final in (False, True):
        short_conv(**inputs, **options, return_final_state=final)
    assert torch.equal(inputs["initial_state"], before)


def test_a_loss_of_the_final_state_alone():
    inputs, options = tensors("packed")
    _, final = short_conv(**inputs, **options, return_final_state=True)
    final.sum().backward()
    for name in ("weight", "bias", "output_gate"):
        assert not inputs[name].grad.any()
    assert torch.equal(inputs["initial_state"].grad[1], torch.ones(2, 4))  # of no tokens
    assert torch.equal(inputs["x"].grad[:3], inputs["input_gate"][:3] * torch.tensor(
        [[0.0], [1], [1]]))


# ---- What torch does with it ----


class Modes(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("call", CALLS)
def test_every_way_through_torch_gives_the_same_bits(device, call):
    def run(inputs, options):
        out = short_conv(**inputs, **options, activation="silu",
                         return_final_state="seq_idx" not in options)
        return out if isinstance(out, tuple) else (out, out)

    def loss(results):
        return sum((one * one).sum() for one in results)

    inputs, options = tensors(call, device=device)
    results = run(inputs, options)
    expected = torch.autograd.grad(loss(results), list(inputs.values()))

    def through_modes(inputs, options):
        with Modes():
            results = run(inputs, options)
            return results, torch.autograd.grad(loss(results), list(inputs.values()))

    def checkpointed(inputs, options):
        results = checkpoint(run, inputs, options, use_reentrant=False)
        return results, torch.autograd.grad(loss(results), list(inputs.values()))

    def by_transform(inputs, options):
        def both(inputs):
            results = run(inputs, options)
            return loss(results), results

        grads, results = torch.func.grad(both, has_aux=True)(inputs)
        return results, list(grads.values())

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")

    def by_compiler(inputs, options):
        results = compiled(inputs, options)
        return results, torch.autograd.grad(loss(results), list(inputs.values()))

    for way in (through_modes, checkpointed, by_transform, by_compiler):
        again, grads = way(inputs, options)
        for one, other in zip((*again, *grads), (*results, *expected)):
            assert torch.equal(one, other), way.__name__


def test_compiled_with_dynamic_shapes(device):
    layer = ShortConv1d(8, 4, activation="silu").to(device)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, dynamic=True,
                             backend="aot_eager")
    for tokens, sequences in ((6, 2), (9, 3), (17, 5)):
        bounds = torch.linspace(0, tokens, sequences + 1, device=device).int()
        x = torch.randn(tokens, 8, device=device)
        results = []
        for one in (layer, compiled):
            given = x.clone().requires_grad_()
            out, final = one(given, query_start_loc=bounds, return_final_state=True)
            (out.square().sum() + final.square().sum()).backward()
            results.append((out, final, given.grad))
        for one, other in zip(*results):
            assert torch.equal(one, other)
    for one, other in zip(layer.parameters(), compiled.parameters()):
        assert torch.equal(one.grad, other.grad)


def test_operators_pass_the_checks_of_torch(device):
    for call in ("dense", "packed"):
        inputs, options = tensors(call, device=device)
        bounds = options.get("query_start_loc")
        common = [bounds, None, False, 1, "silu", None, 0]
        torch.library.opcheck(torch.ops.shortconv.short_conv.default,
                              (*inputs.values(), *common, None, True))
        detached = [one.detach() for one in inputs.values()]
        needed = [True, True, False, True, False, True]
        torch.library.opcheck(
            torch.ops.shortconv.short_conv_backward.default,
            (torch.randn_like(detached[0]), None, needed, *detached, *common))


@pytest.mark.parametrize("way", ["eager", "modes", "transform"])
def test_double_backward_is_refused(way):
    inputs, _ = tensors()
    x, weight = inputs["x"], inputs["weight"]

    def second(x):
        if way == "transform":
            grad = torch.func.grad(lambda x: short_conv(x, weight.detach()).square().sum())(x)
        else:
            out = short_conv(x, weight)
            grad, = torch.autograd.grad(out.square().sum(), x, create_graph=True)
            assert grad.requires_grad
        return grad.sum()

    with pytest.raises(NotImplementedError, match="shortconv: the gradients have no gradients"):
        if way == "transform":
            torch.func.grad(second)(x.detach())
        elif way == "modes":
            with Modes():
                second(x).backward()
        else:
            second(x).backward()


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_gradients_of_each_sample():
    x, weight = torch.randn(5, 7, 4), torch.randn(4, 3)

    def loss(weight, x):
        return short_conv(x, weight, activation="silu").square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    for one, sample in zip(grads, x):
        assert torch.equal(one, torch.func.grad(loss)(weight, sample))


def test_forward_mode_gradients_are_refused():
    x, weight = torch.randn(5, 4), torch.randn(4, 3)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(
            NotImplementedError, match="^shortconv: has no forward-mode gradients"):
        short_conv(torch.autograd.forward_ad.make_dual(x, x), weight)


def test_errors_name_the_argument():
    x, weight = torch.randn(6, 4, requires_grad=True), torch.randn(4, 3)
    bounds, numbers = torch.tensor([0, 6]), torch.zeros(6, dtype=torch.int32)
    refused = {
        "weight: is of shape": {"weight": weight[None]},
        "weight: axis 'channels' is 3, but x made 'channels' = 4": {"weight": weight[:3]},
        "initial_state: is of shape .1, 3, 4.; expected .1, 2, 4.": {
            "initial_state": torch.zeros(1, 3, 4)},
        "initial_state: dtype i32": {"initial_state": torch.zeros(1, 2, 4, dtype=torch.int32)},
        "x: is of shape .4,.; expected": {"x": x[0], "return_final_state": True},
        "query_start_loc: is of shape .1, 2.": {
            "query_start_loc": bounds[None], "return_final_state": True},
        "dilation: is 0": {"dilation": 0},
        "activation: is 'relu'": {"activation": "relu"},
        "residual: cannot be combined": {"residual": True, "input_gate": x.detach()},
        "seq_idx: ": {"seq_idx": numbers, "query_start_loc": bounds},
        "return_final_state: cannot be combined with seq_idx": {
            "seq_idx": numbers, "return_final_state": True},
    }
    for message, arguments in refused.items():
        with pytest.raises(ValueError, match=f"^{message}"):
            short_conv(**{"x": x, "weight": weight, **arguments})
    with pytest.raises(TypeError, match="^weight: is numpy.ndarray; expected a torch tensor"):
        short_conv(x, weight.numpy())


@pytest.mark.skipif(not torch.cuda.is_available() or "cuda" in DEVICES_WITH_GRADIENTS,
                    reason="for a GPU whose backend has no gradients")
def test_missing_gradients_on_a_gpu_are_told():
    x = torch.randn(6, 4, device="cuda", requires_grad=True)
    out = short_conv(x, torch.randn(4, 3, device="cuda"))
    with pytest.raises(NotImplementedError, match="cuda"):
        out.sum().backward()


# ---- The layer ----


def test_the_layer_is_a_depthwise_convolution(device):
    layer = ShortConv1d(8, 4, activation="silu").to(device)
    other = torch.nn.Conv1d(8, 8, 4, groups=8, padding=3).to(device)
    with torch.no_grad():
        other.weight.copy_(layer.weight[:, None])
        other.bias.copy_(layer.bias)
    x = torch.randn(2, 20, 8, device=device, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    out = layer(x)
    expected = torch.nn.functional.silu(other(y.transpose(1, 2))[..., :20].transpose(1, 2))
    torch.testing.assert_close(out, expected)
    for one in (out, expected):
        one.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(layer.weight.grad, other.weight.grad[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad, other.bias.grad, rtol=1e-4, atol=1e-4)


def test_options_of_the_layer():
    layer = ShortConv1d(8, 3, bias=False, residual=True, dilation=2, dtype=torch.bfloat16)
    assert layer.bias is None and layer.weight.dtype == torch.bfloat16
    assert repr(layer) == "ShortConv1d(8, 3, bias=False, residual=True, dilation=2)"
    assert repr(ShortConv1d(8, 4, activation="silu")) == "ShortConv1d(8, 4, activation='silu')"
    assert layer.weight.abs().max() <= 1 / 3**0.5 and layer.weight.std() > 0.1
    x = torch.randn(5, 8).bfloat16()
    assert torch.equal(layer(x), short_conv(x, layer.weight, residual=True, dilation=2))
    again = ShortConv1d(8, 3, bias=False, residual=True, dilation=2)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.weight.bfloat16(), layer.weight)


def test_the_layer_learns():
    target, layer = ShortConv1d(6, 4, activation="silu"), ShortConv1d(6, 4, activation="silu")
    numbers = torch.tensor([[0] * 20 + [1] * 28 + [-1] * 16] * 2)
    x = torch.randn(2, 64, 6)
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    losses = []
    for _ in range(150):
        with torch.no_grad():
            wanted = target(x, seq_idx=numbers)
        loss = (layer(x, seq_idx=numbers) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-4 * losses[0]


@pytest.mark.parametrize("tokens, is_plain", [(9, False), (9, True), (16, True)])
def test_channels_first_rows_give_the_same_bits(device, tokens, is_plain):
    inputs, options = tensors(dtype=torch.bfloat16, channels=8, width=4, device=device)
    if is_plain:  # a GPU has a kernel for these
        options = {"activation": "silu"}
        inputs = {name: inputs[name] for name in ("weight", "bias", "initial_state")}
        inputs["x"] = torch.randn(2, tokens, 8).to(device, torch.bfloat16)
    grad_out = torch.randn(2, tokens, 8).to(device, torch.bfloat16)

    def gradients(layout):
        copies = {name: layout(one.detach()).requires_grad_() for name, one in inputs.items()}
        out = short_conv(**copies, **options)
        return torch.autograd.grad(out, list(copies.values()), layout(grad_out))

    def channels_first(one):
        return one.transpose(-1, -2).contiguous().transpose(-1, -2) if one.dim() == 3 else one

    found = gradients(channels_first)
    for one, other in zip(gradients(torch.clone), found):
        assert torch.equal(one, other)
    if is_plain and device == "cuda":
        assert found[list(inputs).index("x")].stride() == (8 * tokens, 1, tokens)
