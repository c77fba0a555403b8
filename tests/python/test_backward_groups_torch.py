"""short_conv_groups with backward_groups against torch's autograd in float64, and the operator."""

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import shortconv  # noqa: E402
from grids import DEVICES  # noqa: E402
from grouped_case import (  # noqa: E402
    HEADS,
    OPTIONS,
    SEQUENCES,
    TOKENS,
    Case,
    columns_of,
    front_of,
)
from shortconv import Group, HeadMap, _core, models  # noqa: E402
from shortconv.torch import short_conv_groups  # noqa: E402


@pytest.fixture
def calls(monkeypatch):
    """The number of calls of backward_groups so far that were not refused for want of a workspace."""
    from shortconv import _training_groups

    count, compute = [0], _core.backward_groups

    def counting(*values):
        missing = compute(*values)
        count[0] += missing == 0
        return missing

    monkeypatch.setattr(_core, "backward_groups", counting)
    monkeypatch.setattr(_training_groups, "_refused", set())
    return count


class TorchCase(Case):
    """Inputs that need gradients. Calls are of the reference, on a GPU of CUDA."""

    def __init__(self, random, front, sequences="ragged", dtype=None, device="cpu", **options):
        super().__init__(random, front, sequences, **options)
        self.device, self.backend = device, "reference" if device == "cpu" else "cuda"
        self.inputs = {name: torch.from_numpy(self.rows(one) if name in ("x", "ba") else one).to(
                           device)
                       for name in ("x", "ba", "weight", "bias", "a_log", "dt_bias")
                       if (one := getattr(self, name)) is not None}
        if dtype is not None:
            self.inputs.update((name, one.to(dtype)) for name, one in self.inputs.items()
                               if name != "a_log")
        for one in self.inputs.values():
            one.requires_grad_()

    def run(self, x, ba, weight, a_log, dt_bias, bias=None, **changes):
        options = {name: torch.from_numpy(one).to(self.device)
                   for name, one in self.options.items()}
        (groups, g, beta), _ = short_conv_groups(
            x, weight, bias, groups=self.front.groups, gates=self.front.gates(ba, a_log, dt_bias),
            activation="silu", **{"backend": self.backend, **options, **changes})
        return [*groups, g, beta]

    def composed(self, x, ba, weight, a_log, dt_bias, bias=None):
        """The results of torch's operators, of the rows with a sequence."""
        keep = torch.from_numpy(self.has_sequence)
        x, ba = x.reshape(TOKENS, -1), ba.reshape(TOKENS, -1)[keep]
        columns = [columns_of(one.input, one.heads, one.head_dim) for one in self.front.groups]
        rows = torch.cat([x[:, at] for one, at in zip(self.front.groups, columns) if not one.copy],
                         1)
        outs = []
        for begin, end in zip(self.bounds[:-1], self.bounds[1:]):
            if begin < end and self.has_sequence[begin]:
                history = torch.nn.functional.pad(rows[begin:end].T[None], (weight.shape[1] - 1, 0))
                outs.append(torch.nn.functional.conv1d(history, weight[:, None], bias,
                                                       groups=len(weight))[0].T)
        y, at, results = torch.nn.functional.silu(torch.cat(outs)), 0, []
        for one, where in zip(self.front.groups, columns):
            part = x[keep][:, where] if one.copy else y[:, at:at + len(where)]
            at += 0 if one.copy else len(where)
            part = part.unflatten(1, (one.heads, one.head_dim))
            if one.l2_norm:
                part = part * torch.rsqrt(part.square().sum(-1, keepdim=True) + one.eps) * one.scale
            results.append(part)
        a, b = (ba[:, columns_of(one, HEADS, 1)] for one in self.front.gate_maps)
        g = -a_log.exp() * torch.nn.functional.softplus(a + dt_bias)
        return [*results, g.exp() if self.front.decay == "exp" else g,
                self.front.beta_factor * b.sigmoid()]

    def check(self, random, used=None, tolerance=2e-5, **changes):
        """Compares gradients, from random gradients of the results that are used."""
        wide = {name: one.detach().cpu().double().requires_grad_()
                for name, one in self.inputs.items()}
        results, exact = self.run(**self.inputs, **changes), self.composed(**wide)
        keep = torch.from_numpy(self.has_sequence)
        used = range(len(results)) if used is None else used
        grads = []
        for i in used:
            grad = torch.from_numpy(random.standard_normal(results[i].shape)).to(results[i].dtype)
            grad.flatten(0, len(self.shape) - 1)[~keep] = torch.nan
            grads.append(grad)
        found = torch.autograd.grad([results[i] for i in used], list(self.inputs.values()),
                                    [one.to(self.device) for one in grads], allow_unused=True)
        expected = torch.autograd.grad(
            [exact[i] for i in used], list(wide.values()),
            [one.flatten(0, len(self.shape) - 1)[keep].double() for one in grads],
            allow_unused=True)
        for (name, given), one, other in zip(self.inputs.items(), found, expected):
            if one is None or other is None:
                assert (one is None or not one.any()) and (other is None or not other.any()), name
                continue
            assert one.dtype == given.dtype and one.shape == given.shape
            scale = max(1, other.abs().max().item())
            torch.testing.assert_close(one.cpu().double(), other, rtol=tolerance,
                                       atol=tolerance * scale,
                                       msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("layout", ["interleaved", "flat"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sequences", SEQUENCES)
@pytest.mark.parametrize("device", DEVICES)
def test_training_equals_autograd(random, calls, layout, options, sequences, device):
    case = TorchCase(random, front_of(layout, **options), sequences, device=device)
    case.check(random)
    assert calls == [1]
    if device == "cpu":
        case.check(random, backend=None)  # composed
        assert calls == [1]


def test_training_without_bias_and_with_columns_that_no_group_reads(random, calls):
    case = TorchCase(random, front_of("flat"), "padded", has_bias=False, extra=5)
    case.check(random)
    assert calls == [1]


@pytest.mark.parametrize("used", [[0], [2], [1, 3], [2, 4], [0, 5]])
def test_training_with_outputs_that_are_not_used(random, calls, used):
    TorchCase(random, front_of(), "padded").check(random, used)
    assert calls == [1]


def test_training_in_bf16(random, calls):
    for device in DEVICES:
        case = TorchCase(random, front_of(), "padded", dtype=torch.bfloat16, device=device)
        case.check(random, tolerance=0.02)
    assert calls == [len(DEVICES)]
    mixed = TorchCase(random, front_of())
    mixed.inputs["dt_bias"] = mixed.inputs["dt_bias"].detach().bfloat16().requires_grad_()
    mixed.check(random, tolerance=0.005)
    assert calls == [len(DEVICES) + 1]


def test_training_takes_the_gradients_of_sums(random, calls):
    """Those are expanded: their channels are not adjacent."""
    case = TorchCase(random, front_of())
    results = case.run(**case.inputs)
    ones = [torch.ones_like(one) for one in results]
    expected = torch.autograd.grad(results, list(case.inputs.values()), ones, retain_graph=True)
    found = torch.autograd.grad(sum(one.sum() for one in results), list(case.inputs.values()))
    assert all(map(torch.equal, found, expected)) and calls == [2]


def test_training_differentiates_only_what_is_needed(random, calls):
    case = TorchCase(random, front_of())
    inputs = {name: one.detach() for name, one in case.inputs.items()}
    inputs["weight"].requires_grad_()
    sum(one.sum() for one in case.run(**inputs)[:3]).backward()
    assert calls == [1]
    sum(one.sum() for one in case.run(**case.inputs)[:3]).backward()
    assert torch.equal(inputs["weight"].grad, case.inputs["weight"].grad)
    assert inputs["x"].grad is None and case.inputs["ba"].grad is None


def test_gradcheck(calls):
    torch.manual_seed(0)
    groups = [Group(2, 3, HeadMap(6), l2_norm=True, eps=0.1, scale=2.0), Group(1, 2, copy=True),
              Group(2, 2, HeadMap(2))]
    x = torch.randn(2, 4, 13, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(10, dtype=torch.float64, requires_grad=True)

    def run(x, weight, bias):
        return tuple(short_conv_groups(
            x, weight, bias, groups=groups, activation="silu", backend="reference")[0].groups)

    # The norm is computed in fp32 on all backends: finite differences have few digits.
    assert torch.autograd.gradcheck(run, (x, weight, bias), eps=1e-2, atol=1e-2, rtol=1e-2)
    assert calls[0] > 0
    groups[0] = groups[0]._replace(l2_norm=False)
    assert torch.autograd.gradcheck(run, (x, weight, bias))


def test_calls_that_backward_groups_does_not_have_are_composed(random, calls):
    scaled = models.mamba2(num_heads=2, head_dim=6, n_groups=1, state_size=5,
                           input_scales=(0.25, 3.0, 0.7))
    x = torch.randn(9, scaled.columns, requires_grad=True)
    weight = torch.randn(scaled.channels, 4)
    results, _ = short_conv_groups(x, weight, groups=scaled.groups,
                                                   backend="reference")
    results.groups[0].sum().backward()
    case = TorchCase(random, front_of())
    case.check(random, [3, 4])  # no result of the convolution
    case.check(random, backend="cpu")
    state = torch.zeros(5, 3, case.front.channels)
    case.check(random, initial_state=state)
    assert calls == [0]


def test_a_refused_call_is_tried_once(random, calls, monkeypatch):
    def refusing(*values):
        calls[0] += 1
        raise NotImplementedError("heads: are 6 channels; expected a power of two")

    monkeypatch.setattr(_core, "backward_groups", refusing)
    case = TorchCase(random, front_of())
    case.check(random)
    case.check(random)
    assert calls == [1]
    TorchCase(random, front_of("flat")).check(random)
    assert calls == [2]


@pytest.fixture
def torch_call(random):
    """backward_groups of tensors, and the tensors."""
    case = Case(random, front_of(), "padded", extra=2)
    tensors = {name: torch.from_numpy(one) for name, one in (
        ("x", case.x), ("ba", case.ba), ("weight", case.weight), ("bias", case.bias),
        ("a_log", case.a_log), ("dt_bias", case.dt_bias), ("grad_g", case.grad_g),
        ("bounds", case.options["query_start_loc"]),
        *((f"grad{i}", one) for i, one in enumerate(case.grads)))}

    def run(x, ba, weight, bias, a_log, dt_bias, grad_g, bounds, grad0, grad1, grad2, grad3,
            **options):
        return shortconv.backward_groups(
            [grad0, grad1, grad2, grad3], x, weight, bias, groups=case.front.groups,
            gates=case.front.gates(ba, a_log, dt_bias), grad_g=grad_g, query_start_loc=bounds,
            activation="silu", backend="reference", **options)

    return run, tensors


def test_torch_compiles_the_whole_graph(torch_call):
    run, tensors = torch_call
    compiled = torch.compile(lambda **tensors: [one + 1 for one in run(**tensors)],
                             backend="aot_eager", fullgraph=True)
    for got, expected in zip(compiled(**tensors), run(**tensors)):
        torch.testing.assert_close(got, expected + 1, rtol=0, atol=0, equal_nan=True)


def test_torch_compiles_training_before_anything_else(tmp_path):
    """In a process of its own: compiled backward passes cannot fill the library's dictionaries."""
    program = tmp_path / "program.py"
    program.write_text("""if True:
        import torch
        from shortconv import models
        from shortconv.torch import short_conv_groups

        front = models.gated_delta_net(num_k_heads=1, num_v_heads=2, head_k_dim=4, head_v_dim=4)
        shapes = [(1, 9, front.columns), (front.channels, 4), (1, 9, 4), (2,), (2,)]
        inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]

        def run(x, weight, *gates):
            (groups, g, beta), _ = short_conv_groups(
                x, weight, groups=front.groups, gates=front.gates(*gates), backend="reference")
            return sum(one.square().sum() for one in (*groups, g, beta))

        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        for one, other in zip(*(torch.autograd.grad(f(*inputs), inputs) for f in (compiled, run))):
            torch.testing.assert_close(one, other)
        """)
    subprocess.run([sys.executable, program], check=True)


def test_torch_traces_without_memory_and_sees_what_is_written(torch_call):
    from torch._subclasses.fake_tensor import FakeTensorMode

    run, tensors = torch_call
    expected = run(**tensors)
    with FakeTensorMode() as mode:
        fake = run(**{name: mode.from_tensor(one) for name, one in tensors.items()})
    assert [one.shape for one in fake] == [one.shape for one in expected]
    assert run(**{name: one.to("meta") for name, one in tensors.items()}).x.is_meta
    with pytest.raises(ValueError, match=r"grad_groups\[1\]: is on meta, but x is on cpu"):
        run(**{**tensors, "grad1": tensors["grad1"].to("meta")})
    with pytest.raises(NotImplementedError, match=r"grad_groups\[1\]: is negated lazily"):
        run(**{**tensors, "grad1": torch._neg_view(tensors["grad1"])})
    with pytest.raises(NotImplementedError, match="backward_groups: has no backward pass"):
        run(**{**tensors, "weight": tensors["weight"].clone().requires_grad_()})
    with pytest.raises(NotImplementedError, match="backward_groups: has no backward pass"):
        run(**{**tensors, "grad1": tensors["grad1"].clone().requires_grad_()})
    own = torch.zeros_like(tensors["weight"])
    version = own._version
    run(**tensors, grad_weight=own)
    assert own._version == version + 1 and torch.equal(own, expected.weight)


class OfTorch:
    """Arrays of Case.call."""

    of = staticmethod(lambda one: None if one is None else torch.from_numpy(one))
    backends = ["reference"]


@pytest.fixture
def direct(monkeypatch):
    """The calls that did not take the general way, which is refused after direct[:] = ["only"]."""
    from shortconv import _torch, _torch_groups

    taken, new, general = [], _torch.new_gradients, _torch_groups._call_groups

    def counting(*arguments):
        found = new(*arguments)
        taken.append(found is not None)
        return found

    def only(*arguments):
        assert taken[:1] != ["only"]
        return general(*arguments)

    monkeypatch.setattr(_torch, "new_gradients", counting)
    monkeypatch.setattr(_torch_groups, "_call_groups", only)
    return taken


@pytest.mark.parametrize("sequences", SEQUENCES)
@pytest.mark.parametrize("changes", [
    {}, {"gates": None, "grad_g": None, "grad_beta": None}, {"grad_x": False, "grad_a": False},
    {"grad_a": False, "grad_b": False, "grad_a_log": False, "grad_dt_bias": False},
    {"grad_weight": False, "grad_bias": False}, {"threads": 2, "activation": None}])
def test_the_direct_way_has_the_bits_of_the_general_one(random, direct, monkeypatch, sequences,
                                                        changes):
    from shortconv import _torch

    for case in (Case(random, front_of("flat", decay="exp", beta_factor=2.0), sequences, extra=3),
                 Case(random, front_of(), sequences, has_bias=False)):
        found = [case.call(OfTorch, **changes) for _ in range(2)]
        assert direct == [True, True]
        with monkeypatch.context() as context:
            context.setattr(_torch, "new_gradients", lambda *arguments: None)
            found.append(case.call(OfTorch, **changes))
        for ones in zip(*found):
            assert all(one is ones[0] is None or torch.equal(one, ones[0]) for one in ones)
        direct.clear()


def test_calls_that_torch_sees_or_that_are_rare_take_the_general_way(random, direct):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            return function(*arguments, **(options or {}))

    case = Case(random, front_of())
    weight = torch.from_numpy(case.weight)
    given = [OfTorch.of(one) for one in case.grads]
    with Mode():
        case.call(OfTorch)
    for changes in ({"grad_g": None}, {"grad_groups": [None, *given[1:]]},
                    {"grad_weight": torch.empty_like(weight)},
                    {"weight": torch.nn.Parameter(weight, requires_grad=False).as_subclass(
                        type("Other", (torch.Tensor,), {}))}):
        case.call(OfTorch, **changes)
    case.call(OfTorch, workspace=torch.empty(8, dtype=torch.uint8))  # not even tried
    assert direct == [False] * 5


def test_errors_of_the_direct_way_are_those_of_the_general_one(random, monkeypatch):
    from shortconv import _torch

    case = Case(random, front_of(), "padded")
    grads, gates = [OfTorch.of(one) for one in case.grads], case.front.gates(
        *(OfTorch.of(one) for one in (case.ba, case.a_log, case.dt_bias)))
    group = case.front.groups[0]
    changes = [
        {"grad_groups": grads[:2]}, {"grad_groups": [grads[0][1:], *grads[1:]]},
        {"grad_groups": [3, *grads[1:]]}, {"grad_groups": [grads[0].int(), *grads[1:]]},
        {"grad_groups": [torch._neg_view(grads[0]), *grads[1:]]}, {"grad_g": grads[0]},
        {"gates": None}, {"gates": tuple(gates)}, {"x": grads[0][..., None]},
        {"weight": grads[0]}, {"weight": None}, {"weight": torch.randn(3, 4)},
        {"query_start_loc": grads[0]}, {"seq_idx": grads[0]}, {"activation": "relu"},
        {"backend": "abacus"}, {"threads": -1}, {"grad_x": 1}, {"grad_b": "b"},
        {"groups": [group] * 4}, {"groups": [group, *case.front.groups[:3]]}, {"groups": [3]},
        *({"gates": gates._replace(**one)} for one in (
            {"a": None}, {"a": gates.a[0]}, {"b": gates.b[1:]}, {"a_log": gates.a_log.double()},
            {"dt_bias": gates.a}, {"a_map": 3}, {"a_map": HeadMap(0, 0, 1)}, {"decay": "linear"},
            {"beta_factor": "two"}, {"beta_factor": 3.0}))]
    for _ in range(2):  # with shapes that are new, and known
        for change in changes:
            with pytest.raises((TypeError, ValueError, NotImplementedError)) as found:
                case.call(OfTorch, **change)
            with monkeypatch.context() as context:
                context.setattr(_torch, "new_gradients", lambda *arguments: None)
                with pytest.raises(found.type) as expected:
                    case.call(OfTorch, **change)
            assert str(found.value) == str(expected.value), change
        case.call(OfTorch)


def test_a_known_call_is_one_call_of_the_core_and_seven_allocations(random, direct, monkeypatch):
    from shortconv import _group_arguments

    calls, least, made, compute = [], [100], [], _core.backward_groups

    def needing(*values):
        memory = values[-1] if isinstance(values[-2], str) and values[-2] == "workspace" else None
        calls.append(None if memory is None else memory.nbytes)
        if memory is None:
            return least[0]
        if memory.nbytes < least[0]:
            raise ValueError(f"workspace: has {memory.nbytes} bytes; expected {least[0]}")
        return compute(*values)

    def counted(make):
        return lambda *arguments, **options: (made.append(make.__name__),
                                              make(*arguments, **options))[1]

    monkeypatch.setattr(_group_arguments, "_known", {})
    monkeypatch.setattr(_core, "backward_groups", needing)
    for name in ("empty", "empty_like", "zeros", "zeros_like"):
        monkeypatch.setattr(torch, name, counted(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", counted(torch.Tensor.new_empty))
    direct[:] = ["only"]
    case = Case(random, front_of())
    for expected in ([None, 100], [100], [100]):
        case.call(OfTorch)
        assert calls == expected
        assert sorted(made) == ["empty_like"] * 5 + ["new_empty"] + ["zeros_like"] * 2
        calls.clear()
        made.clear()
    least[0] = 300  # not what shapes say, but the core has the last word
    case.call(OfTorch)
    case.call(OfTorch)
    assert calls == [100, None, 300, 300] and direct[1:] == [True] * 5


def test_a_backward_pass_calls_few_functions_of_the_package(random, calls, direct, monkeypatch):
    """What its time on the host follows from: 22 functions of Python; the general way calls 102."""
    from shortconv import _training_groups

    forward = _core.forward_groups
    made = []
    monkeypatch.setattr(_core, "forward_groups", lambda *a: (made.append("core"), forward(*a)))
    monkeypatch.setattr(_training_groups, "_kind", None)  # of calls, where some were refused
    case = TorchCase(random, front_of(), "batch")
    folder = os.path.dirname(shortconv.__file__)

    def step():
        results = case.run(**case.inputs)
        torch.autograd.grad(results, list(case.inputs.values()),
                            [torch.ones_like(one) for one in results])

    def count(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(folder):
            made.append(frame.f_code.co_name)

    step()
    made.clear()
    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(None)
    assert calls == [2] and direct == [True, True] and made.count("core") == 1
    assert len(made[made.index("backward"):]) <= 30
