"""short_conv_groups with backward_groups against torch's autograd in float64, and the operator."""

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
