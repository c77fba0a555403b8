"""Calls that torch has to see: traces, modes, transforms, subclasses, gradients, versions."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import shortconv  # noqa: E402
import shortconv.torch as conv  # noqa: E402
from grids import DEVICES_WITH_GRADIENTS  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
NO_BACKWARD = "has no backward pass here"


@pytest.fixture(params=DEVICES)
def device(request):
    torch._dynamo.reset()
    return request.param


def forward_arguments(device, tokens=6):
    """The floating arguments of forward that can be combined; the same values each time."""
    torch.manual_seed(11)
    make = {"x": (tokens, 8), "weight": (8, 4), "bias": (8,), "state": (2, 3, 8),
            "input_gate": (tokens, 8), "output_gate": (tokens, 8), "out": (tokens, 8)}
    return {name: torch.randn(shape, device=device) for name, shape in make.items()}


def small_call(device):
    """Tensors x, weight and state, and a call with them."""
    arguments = forward_arguments(device)
    bias = arguments["bias"]

    def call(x, weight, state):
        return shortconv.forward(x, weight, bias, state=state, initial_state=True)

    return [arguments[name] for name in ("x", "weight", "state")], call


def assert_same_as_eager(device, call_of):
    """call_of(call, tensors) runs a call in some way; the results are those of eager mode."""
    tensors, call = small_call(device)
    expected_state, state = tensors[2].clone(), tensors[2].clone()
    expected = call(*tensors[:2], expected_state)
    assert torch.equal(call_of(call, (*tensors[:2], state)), expected)
    assert torch.equal(state, expected_state) and not torch.equal(state, tensors[2])


# ---- Traces and modes ----


def test_make_fx_records_the_convolution(device):
    tensors, call = small_call(device)
    graph = make_fx(call)(tensors[0], tensors[1], tensors[2].clone())
    assert_same_as_eager(device, lambda call, tensors: graph(*tensors))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_jit_trace_records_the_convolution(device):
    tensors, call = small_call(device)
    traced = torch.jit.trace(call, (tensors[0], tensors[1], tensors[2].clone()), check_trace=False)
    assert_same_as_eager(device, lambda call, tensors: traced(*tensors))


@pytest.mark.parametrize("strict", [True, False])
def test_export_with_dynamic_shapes(device, strict):
    class Layer(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = torch.nn.Parameter(weight)

        def forward(self, x, state):
            return conv.forward(x, self.weight, state=state, initial_state=True)

    (x, weight, state), _ = small_call(device)
    shapes = {"x": {0: torch.export.Dim("tokens", min=2, max=64)}, "state": None}
    exported = torch.export.export(
        Layer(weight), (x, state.clone()), strict=strict, dynamic_shapes=shapes).module()
    for given in (x, torch.cat([x, x, x])):
        ours, other = state.clone(), state.clone()
        expected = conv.forward(given, weight, state=ours, initial_state=True)
        assert torch.equal(exported(given, other), expected) and torch.equal(ours, other)


def test_fake_and_meta_tensors_give_shapes(device):
    (x, weight, _), _ = small_call(device)
    with FakeTensorMode() as mode:
        inside = shortconv.forward(torch.empty(6, 8, device=device),
                                   torch.empty(8, 4, device=device))
    outside = shortconv.forward(mode.from_tensor(x), mode.from_tensor(weight))
    for out in (inside, outside):
        assert isinstance(out, FakeTensor) and out.shape == x.shape and out.device == x.device
    assert shortconv.forward(x.to("meta"), weight.to("meta")).is_meta


def test_modes_see_the_operator(device):
    seen = []

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    # Function modes see torch's functions only: torch.set_default_device is one.
    for mode in (Dispatch(), FlopCounterMode(display=False)):
        seen.clear()

        def under(call, tensors, mode=mode):
            with mode:
                return call(*tensors)

        assert_same_as_eager(device, under)
        assert any("shortconv.run" in one for one in seen) or isinstance(mode, FlopCounterMode)


def test_subclasses_with_memory_are_seen_and_kept(device):
    seen = []

    class Subclass(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return super().__torch_function__(function, types, args, kwargs or {})

    for position in range(3):
        seen.clear()

        def call_of(call, tensors, position=position):
            tensors = list(tensors)
            tensors[position] = tensors[position].as_subclass(Subclass)
            return call(*tensors).as_subclass(torch.Tensor)

        assert_same_as_eager(device, call_of)
        assert "shortconv.run.default" in seen


def test_inference_tensors(device):
    def call_of(call, tensors):
        with torch.inference_mode():
            copies = [one.clone() for one in tensors]
            call(*copies)
        copies[2] = tensors[2]
        return call(*copies)  # outside

    assert_same_as_eager(device, call_of)


def test_gradients_enabled_in_inference_mode(device):
    (x, weight, state), call = small_call(device)
    expected = call(x, weight, state.clone())
    with torch.inference_mode(), torch.enable_grad():
        own = state.clone()
        assert own.is_inference() and torch.equal(call(x, weight, own), expected)
        out = call(x, torch.nn.Parameter(weight), state)
        assert torch.equal(out, expected) and out.requires_grad


@pytest.mark.parametrize("name", sorted(forward_arguments("cpu")))
def test_lazily_negated_tensors(device, name):
    arguments = forward_arguments(device)
    plain = {one: value.clone() for one, value in arguments.items()}
    expected = shortconv.forward(**plain, initial_state=True)
    value = arguments[name]
    arguments[name] = torch.complex(value, -value).conj().imag  # the only public way to one
    assert arguments[name].is_neg()
    out = shortconv.forward(**arguments, initial_state=True)
    assert torch.equal(out, expected)
    assert torch.equal(arguments["state"], plain["state"])


def test_x_is_lazily_negated_and_dense(device):
    (x, weight, _), _ = small_call(device)
    negated = x.neg()._neg_view()
    assert negated.is_neg()
    assert torch.equal(conv.forward(negated, weight), conv.forward(x, weight))


# ---- Plain calls, which pass frequent values with the op ----


@pytest.mark.parametrize("null_slot", [None, 1])
@pytest.mark.parametrize("padded_rows", [None, "zero", "untouched", "copy"])
@pytest.mark.parametrize("initial_state", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_plain_calls_equal_those_of_the_operator(
        device, activation, initial_state, padded_rows, null_slot):
    a = forward_arguments(device)
    bounds = torch.tensor([0, 2, 5], dtype=torch.int32, device=device)  # the last row is padding
    slots = torch.tensor([1, 0], dtype=torch.int32, device=device)
    results = []
    for call in (conv.run, torch.ops.shortconv.run.default):
        out, state = a["out"].clone(), a["state"].clone()
        call(0, a["x"], out, a["weight"], a["bias"], state, slots, bounds, None, initial_state,
             activation, null_slot, padded_rows)
        results.append((out, state))
    assert all(map(torch.equal, *results))


def test_parameters_are_plain(device):
    (x, weight, state), call = small_call(device)
    expected, expected_state = call(x, weight, state.clone()), state.clone()
    call(x, weight, expected_state)
    for inference in (False, True):
        with torch.inference_mode(inference):
            given = [torch.nn.Parameter(one.clone(), requires_grad=False)
                     for one in (x, weight, state)]
            assert torch.equal(call(*given), expected)
            assert torch.equal(given[2], expected_state)


# ---- Refused calls ----


@pytest.mark.parametrize("name, value, error", [
    ("activation", "relu", ValueError), ("activation", 5, TypeError),
    ("initial_state", "all", TypeError), ("padded_rows", "nan", ValueError),
    ("padded_rows", 0, TypeError), ("null_slot", "n", TypeError)])
def test_bad_values_are_refused_by_name(name, value, error):
    (x, weight, state), _ = small_call("cpu")
    with pytest.raises(error, match=f"^{name}: is "):
        shortconv.forward(x, weight, state=state, **{name: value})


@pytest.mark.parametrize("kind, convert", [
    ("sparse_coo", lambda one: one.to_sparse()), ("sparse_csr", lambda one: one.to_sparse_csr()),
    ("quantized", lambda one: torch.quantize_per_tensor(one, 0.1, 0, torch.quint8)),
    ("nested", lambda one: torch.nested.nested_tensor([one, one])),
    ("nested", lambda one: torch.nested.nested_tensor([one, one], layout=torch.jagged))])
@pytest.mark.filterwarnings("ignore")
def test_other_layouts_are_refused_by_name(kind, convert):
    (x, weight, _), _ = small_call("cpu")
    with pytest.raises(TypeError, match=f"^weight: is a .*{kind}.* tensor; expected a dense"):
        shortconv.forward(x, convert(weight))
    with pytest.raises(TypeError, match=f"^x: is a .*{kind}.* tensor; expected a dense"):
        shortconv.forward(convert(x), weight)


def test_several_devices_are_refused():
    (x, weight, _), _ = small_call("cpu")
    with pytest.raises(ValueError, match="^weight: is on meta, but x is on cpu"):
        shortconv.forward(x, weight.to("meta"))


def test_freed_memory_is_refused(device):
    (x, weight, _), _ = small_call(device)
    weight.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="^weight: data is null"):
        shortconv.forward(x, weight)


def test_transforms_are_refused(device):
    (x, weight, _), _ = small_call(device)

    def total(x):
        return conv.forward(x, weight).sum()

    for transform in (lambda: torch.func.grad(total)(x), lambda: torch.func.vjp(total, x)):
        with pytest.raises(NotImplementedError, match=NO_BACKWARD):
            transform()
    with pytest.raises(NotImplementedError, match="no forward-mode gradients"):
        torch.func.jvp(total, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match="no forward-mode gradients"):
            total(dual)
    with pytest.raises(RuntimeError, match="shortconv::run"):
        torch.vmap(total)(torch.stack([x, x]))
    with pytest.raises(RuntimeError, match="shortconv::run"):
        torch.func.functionalize(total)(x)


def test_distributed_tensors_are_refused():
    from torch.distributed.tensor import Replicate, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    (x, weight, _), _ = small_call("cpu")
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        one, other = (distribute_tensor(one, mesh, [Replicate()]) for one in (x, weight))
        with pytest.raises(Exception, match="shortconv.run"):
            shortconv.forward(one, other)
    finally:
        torch.distributed.destroy_process_group()


# ---- Versions ----


def written_calls(device):
    """(written tensors, call) for each function and each tensor that it writes."""
    a = forward_arguments(device)
    index = torch.zeros(2, 3, dtype=torch.int32, device=device)
    states = torch.zeros(2, 3, 3, 8, device=device)
    counts = torch.zeros(13, 2, dtype=torch.int64, device=device)
    slots = index[:, 0].contiguous()
    yield (a["out"], a["state"], counts), lambda: shortconv.forward(
        a["x"], a["weight"], out=a["out"], state=a["state"], violations=counts)
    yield (a["x"],), lambda: conv.run(0, a["x"], a["x"], a["weight"], None, a["state"])
    yield (a["state"], states), lambda: shortconv.verify(
        a["x"].view(2, 3, 8), a["weight"], state=a["state"], intermediate_states=states,
        update_state=True)
    yield (a["state"],), lambda: shortconv.commit(
        states.view(1, 2, 9, 8), a["state"][None], slots, width=4)
    yield (index,), lambda: shortconv.tree_parents(index.clone(), index.clone(), index)
    yield (index,), lambda: shortconv.block_snapshots(
        slots.new_zeros(3), slots, index.clone(), tokens=0, block_size=4, snapshots=index)


def test_written_tensors_get_a_new_version(device):
    for written, call in written_calls(device):
        before = [one._version for one in written]
        call()
        assert all(one._version > version for one, version in zip(written, before))


def test_autograd_notices_that_a_saved_state_was_written(device):
    (x, weight, state), call = small_call(device)
    loss = (state * torch.ones_like(state, requires_grad=True)).sum()
    call(x, weight, state)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- Gradients ----


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", sorted({*forward_arguments("cpu")} - {"out", "state"}))
def test_the_backward_pass_of_each_input_raises(device, name, compiled):
    arguments = forward_arguments(device)
    arguments[name].requires_grad_()

    def layer(**arguments):
        return conv.forward(**arguments, initial_state=True) * 2

    call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    out = call(**arguments)
    with pytest.raises(NotImplementedError, match=NO_BACKWARD):
        out.sum().backward()
    if not compiled:
        with pytest.raises(NotImplementedError, match=NO_BACKWARD):
            torch.autograd.grad(layer(**arguments).sum(), [arguments[name]], allow_unused=True)


@pytest.mark.parametrize("name", ["out", "state"])
def test_written_tensors_with_gradients(device, name):
    arguments = forward_arguments(device)
    leaf = arguments[name].requires_grad_()
    before = leaf.detach().clone()
    with pytest.raises(NotImplementedError, match=f"^{name}: is a leaf .*{NO_BACKWARD}"):
        shortconv.forward(**arguments, initial_state=True)
    assert torch.equal(leaf, before)
    arguments[name] = leaf * 1
    out = shortconv.forward(**arguments, initial_state=True)
    for result in (out, arguments[name]):
        with pytest.raises(NotImplementedError, match=NO_BACKWARD):
            result.sum().backward(retain_graph=True)
    with torch.no_grad():
        arguments = {**forward_arguments(device), name: leaf}
        assert shortconv.forward(**arguments).grad_fn is None


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_models_in_eval_mode_with_gradients_enabled(device, backend):
    (x, weight, state), _ = small_call(device)
    parameter = torch.nn.Parameter(weight)

    def layer(x, state):
        return conv.forward(x, parameter, state=state, initial_state=True).relu_()

    call = layer if backend is None else torch.compile(
        layer, fullgraph=True, dynamic=True, backend=backend)
    for tokens in (6, 9, 12):
        given, other = torch.randn(tokens, 8, device=device), state.clone()
        out = call(given, state)
        expected = conv.forward(given, weight, state=other, initial_state=True).relu()
        assert torch.equal(out, expected) and torch.equal(state, other)
        with pytest.raises(NotImplementedError, match=NO_BACKWARD):
            out.sum().backward()


def test_results_are_not_views(device):
    (x, weight, state), _ = small_call(device)
    out = shortconv.decode(x[:2], torch.nn.Parameter(weight), state=state)
    assert out._base is None and out.requires_grad


def test_commit_refuses_gradients(device):
    states = torch.zeros(1, 2, 9, 8, device=device, requires_grad=True)
    state = torch.zeros(1, 2, 3, 8, device=device)
    accepted = torch.zeros(2, dtype=torch.int32, device=device)
    with pytest.raises(NotImplementedError, match=NO_BACKWARD):
        shortconv.commit(states, state, accepted, width=4).sum().backward()


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_operators_pass_the_checks_of_torch(device, needs_gradient):
    a = forward_arguments(device)
    index = torch.zeros(2, 3, dtype=torch.int32, device=device)
    slots = index[:, 0].contiguous()
    weight = a["weight"].requires_grad_(needs_gradient)
    operators = torch.ops.shortconv
    torch.library.opcheck(
        operators.run.default, (0, a["x"], a["out"], weight, a["bias"]),
        {"state": a["state"], "initial_state": True, "activation": "silu"})
    if not needs_gradient:
        torch.library.opcheck(operators.commit.default, (
            torch.zeros(1, 2, 9, 8, device=device), a["state"][None], slots, 4))
        torch.library.opcheck(
            operators.tree_parents.default, (index, index.clone(), None, index.clone()))
        torch.library.opcheck(operators.block_snapshots.default, (
            slots.new_zeros(3), slots, index, 0, 4, index.clone()))


@pytest.mark.parametrize("device", DEVICES_WITH_GRADIENTS)
def test_a_compiled_backward_call_equals_eager(device):
    torch._dynamo.reset()
    a = forward_arguments(device)
    torch.library.opcheck(
        torch.ops.shortconv.backward.default, (
            a["out"], a["x"], a["weight"], a["bias"], torch.empty_like(a["x"]), None,
            torch.empty_like(a["bias"]), "silu"), {"grad_final_state": a["state"][:1]})

    def call(grad_out, x):
        return shortconv.backward(grad_out, x, a["weight"], a["bias"], activation="silu")

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (6, 9):
        grad_out, x = torch.randn(2, tokens, 8, device=device)
        for one, other in zip(compiled(grad_out, x), call(grad_out, x)):
            assert (one is None and other is None) or torch.equal(one, other)


def test_arrays_of_other_libraries_beside_torch_tensors():
    x, weight = torch.randn(6, 8), torch.randn(8, 4)
    expected = shortconv.forward(x, weight)
    assert torch.equal(shortconv.forward(x, weight.numpy()), expected)
    bounds = np.array([0, 6], np.int32)
    assert torch.equal(shortconv.forward(x, weight, query_start_loc=bounds), expected)


def test_errors_of_plain_tensors_are_not_tried_again(monkeypatch):
    """A checked call would have told about bad values in the first attempt."""
    from shortconv import _torch

    attempts = []

    def refuse(*arguments):
        attempts.append(arguments)
        raise ValueError("x: is refused")

    monkeypatch.setattr(_torch, "_core_forward", refuse)
    monkeypatch.setattr(_torch._RUN, "core", refuse)
    with pytest.raises(ValueError, match="^x: is refused$"):
        shortconv.forward(torch.ones(10, 8), torch.ones(8, 4))
    assert len(attempts) == 1
