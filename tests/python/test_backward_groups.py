"""shortconv.backward_groups against formulas in float64, and short_conv_groups with it against
torch's autograd in float64.
"""

import numpy as np
import oracle
import pytest
import shortconv
from shortconv import Group, HeadMap, _core, models

try:
    import torch
    from shortconv.torch import short_conv_groups
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="needs torch")
TOKENS = 24
HEADS = 4  # of v
OPTIONS = [{}, {"decay": "exp", "beta_factor": 2.0, "normalize": False}, {"copy_z": False}]
SEQUENCES = ["one", "ragged", "padded", "seq_idx", "batch", "batch with seq_idx"]


def front_of(layout="interleaved", **options):
    return models.gated_delta_net(num_k_heads=2, num_v_heads=HEADS, head_k_dim=16, head_v_dim=8,
                                  layout=layout, **options)


def columns_of(one, heads, head_dim):
    blocks = one.block_heads or heads
    return [one.offset + h // blocks * one.block_stride + h % blocks * (one.head_stride or head_dim)
            + d for h in range(heads) for d in range(head_dim)]


class Case:
    """The arrays of a call, [tokens, ...], and what divides the rows into sequences.

    Args:
      sequences: of SEQUENCES. Rows without a sequence have NaN.
      extra: columns of x that no group reads.
    """

    def __init__(self, random, front, sequences="ragged", width=4, extra=0, has_bias=True):
        self.front = front
        self.options, self.shape = {}, (TOKENS,)
        self.bounds = [0, TOKENS]  # those without a sequence divide rows too
        self.has_sequence = np.ones(TOKENS, bool)
        if sequences in ("ragged", "padded"):
            self.bounds = [0, 5, 5, 6, 20, TOKENS]
            given = self.bounds if sequences == "ragged" else self.bounds[1:-1]
            self.has_sequence[:given[0]] = self.has_sequence[given[-1]:] = False
            self.options["query_start_loc"] = np.array(given, np.int32)
        if sequences.startswith("batch"):
            self.shape, self.bounds = (2, TOKENS // 2), [0, TOKENS // 2, TOKENS]
        if sequences.endswith("seq_idx"):
            numbers = np.repeat([3, -1, 0, 7, -2], [4, 2, 6, 9, 3])
            self.bounds = [0, 4, 6, 12, 21, TOKENS]
            self.has_sequence = numbers >= 0
            self.options["seq_idx"] = numbers.reshape(self.shape).astype(np.int32)

        def make(*shape):
            one = random.standard_normal(shape).astype(np.float32)
            if shape[0] == TOKENS:
                one[~self.has_sequence] = np.nan
            return one

        self.x, self.ba = make(TOKENS, front.columns + extra), make(TOKENS, 2 * HEADS)
        self.weight = make(front.channels, width)
        self.bias = make(front.channels) if has_bias else None
        self.a_log, self.dt_bias = make(HEADS), make(HEADS)
        self.grads = [make(TOKENS, one.heads, one.head_dim) for one in front.groups]
        self.grad_g, self.grad_beta = make(TOKENS, HEADS), make(TOKENS, HEADS)

    def rows(self, array):
        return array.reshape(*self.shape, *array.shape[1:])

    def call(self, arrays, **changes):
        of = arrays.of
        gates = self.front.gates(of(self.rows(self.ba)), of(self.a_log), of(self.dt_bias))
        given = {
            "x": of(self.rows(self.x)), "weight": of(self.weight), "bias": of(self.bias),
            "groups": self.front.groups, "gates": gates, "activation": "silu",
            "grad_g": of(self.rows(self.grad_g)), "grad_beta": of(self.rows(self.grad_beta)),
            "backend": arrays.backends[-1],
            **{name: of(one) for name, one in self.options.items()}, **changes}
        grads = given.pop("grad_groups", [of(self.rows(one)) for one in self.grads])
        return shortconv.backward_groups(grads, **given)

    def expected(self, activation="silu"):
        """The gradients by formulas."""
        def wide(one):
            one = one.astype(np.float64)
            return np.where(self.has_sequence.reshape(-1, *[1] * (one.ndim - 1)), one, 0)

        groups = self.front.groups
        columns = [columns_of(one.input, one.heads, one.head_dim) for one in groups]
        convolved = [i for i, one in enumerate(groups) if not one.copy]
        x = wide(self.x)
        rows = np.concatenate([x[:, columns[i]] for i in convolved], 1)
        y = np.concatenate([
            oracle.convolve(np.zeros((self.weight.shape[1] - 1, rows.shape[1])), rows[begin:end],
                            self.weight, self.bias, activation)
            for begin, end in zip(self.bounds[:-1], self.bounds[1:])])
        parts = np.split(y, np.cumsum([len(columns[i]) for i in convolved])[:-1], 1)
        grads = [wide(one) for one in self.grads]
        grad_rows = []
        for i, part in zip(convolved, parts):
            grad, part = grads[i], part.reshape(grads[i].shape)
            if groups[i].l2_norm:
                n = 1 / np.sqrt(np.square(part).sum(-1, keepdims=True) + groups[i].eps)
                grad = groups[i].scale * (
                    n * grad - part * n ** 3 * (grad * part).sum(-1, keepdims=True))
            grad_rows.append(np.where(self.has_sequence[:, None], grad.reshape(TOKENS, -1), 0))
        found = oracle.backward(np.concatenate(grad_rows, 1), rows, self.weight, self.bias,
                                bounds=self.bounds, activation=activation)
        grad_x = np.zeros(x.shape)
        at = 0
        for group, grad, where in zip(groups, grads, columns):
            if group.copy:
                grad_x[:, where] = grad.reshape(TOKENS, -1)
            else:
                grad_x[:, where] = found["x"][:, at:at + len(where)]
                at += len(where)
        grad_x[~self.has_sequence] = 0
        return {"x": grad_x, "weight": found["weight"], "bias": found["bias"],
                **self.expected_of_gates(wide)}

    def expected_of_gates(self, wide):
        a_at, b_at = (columns_of(one, HEADS, 1) for one in self.front.gate_maps)
        ba = wide(self.ba)
        total = ba[:, a_at] + self.dt_bias.astype(np.float64)
        scale = -np.exp(self.a_log.astype(np.float64))
        g = scale * np.log1p(np.exp(total))
        grad_g = wide(self.grad_g) * (np.exp(g) if self.front.decay == "exp" else 1)
        grad_a = grad_g * scale / (1 + np.exp(-total))
        s = 1 / (1 + np.exp(-ba[:, b_at]))
        a, b = np.zeros_like(ba), np.zeros_like(ba)
        a[:, a_at] = grad_a
        b[:, b_at] = wide(self.grad_beta) * self.front.beta_factor * s * (1 - s)
        return {"a": a, "b": b, "a_log": (grad_g * g).sum(0), "dt_bias": grad_a.sum(0)}

    def check(self, arrays, gradients, activation="silu", tolerance=2e-5):
        for name, expected in self.expected(activation).items():
            one = getattr(gradients, name)
            if one is None:
                assert name == "bias" and self.bias is None
                continue
            found = arrays.numpy(one).astype(np.float64)
            if name in ("x", "a", "b"):
                expected = self.rows(expected)
            assert found.shape == expected.shape
            scale = max(1, np.abs(expected).max())
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale,
                                       err_msg=name)


@pytest.fixture
def arrays(arrays):
    """Those on devices whose backend has gradients of groups."""
    if arrays.kind == "torch-cuda":
        try:
            Case(np.random.default_rng(0), front_of("flat")).call(arrays)
        except NotImplementedError:
            pytest.skip("the CUDA backend has no gradients of groups")
    return arrays


@pytest.mark.parametrize("layout", ["interleaved", "flat"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sequences", SEQUENCES)
def test_every_gradient_equals_the_formulas(arrays, random, layout, options, sequences):
    case = Case(random, front_of(layout, **options), sequences)
    gradients = case.call(arrays)
    assert isinstance(gradients, shortconv.GroupedGradients)
    assert all(one is not None for one in gradients)
    case.check(arrays, gradients)


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_widths_activations_and_bias(arrays, random, width, activation, has_bias):
    case = Case(random, front_of(), "padded", width, has_bias=has_bias)
    case.check(arrays, case.call(arrays, activation=activation), activation)


def test_columns_that_no_group_reads(arrays, random):
    case = Case(random, front_of("flat"), "padded", extra=3)
    case.x[:, -3:] = np.nan
    case.check(arrays, case.call(arrays))
    own = arrays.of(np.full(case.x.shape, 7, np.float32))
    gradients = case.call(arrays, grad_x=own)
    assert gradients.x is own
    found = arrays.numpy(own).copy()
    assert (found[:, -3:] == 7).all()
    found[:, -3:] = 0
    np.testing.assert_array_equal(found, arrays.numpy(case.call(arrays).x))


def test_gradients_of_unused_outputs_are_zeros(arrays, random):
    case = Case(random, front_of())
    for number in range(len(case.grads)):
        grads = [arrays.of(one) for one in case.grads]
        grads[number] = None
        given = [arrays.of(np.zeros_like(one) if i == number else one)
                 for i, one in enumerate(case.grads)]
        for one, other in zip(case.call(arrays, grad_groups=grads, grad_g=None),
                              case.call(arrays, grad_groups=given,
                                        grad_g=arrays.of(np.zeros_like(case.grad_g)))):
            np.testing.assert_array_equal(arrays.numpy(one), arrays.numpy(other))


def test_only_what_is_asked_for_is_computed_and_given_arrays_are_written(arrays, random):
    case = Case(random, front_of("flat"))
    whole = case.call(arrays)
    for name in whole._fields:
        flags = {f"grad_{one}": one == name for one in whole._fields}
        gradients = case.call(arrays, **flags)
        assert [one is None for one in gradients] == [one != name for one in whole._fields]
        expected = arrays.numpy(getattr(whole, name))
        own = arrays.of(np.zeros_like(expected))
        returned = case.call(arrays, **{**flags, f"grad_{name}": own})
        assert getattr(returned, name) is own
        for one in (getattr(gradients, name), own):
            np.testing.assert_array_equal(arrays.numpy(one), expected)
    gradients = case.call(arrays, gates=None, grad_g=None, grad_beta=None)
    assert gradients[3:] == (None,) * 4
    for one, other in zip(gradients[:3], whole):
        np.testing.assert_array_equal(arrays.numpy(one), arrays.numpy(other))


def test_accumulate_adds(arrays, random):
    case = Case(random, front_of())
    sums = {f"grad_{name}": arrays.of(np.full(getattr(case, name).shape, 3, np.float32))
            for name in ("weight", "bias")}
    case.call(arrays, accumulate=True, **sums)
    expected = case.expected()
    for name in ("weight", "bias"):
        np.testing.assert_allclose(arrays.numpy(sums[f"grad_{name}"]), expected[name] + 3,
                                   rtol=2e-5, atol=2e-4)
    with pytest.raises(ValueError, match="^grad_bias: is not given, but accumulate adds to it"):
        case.call(arrays, accumulate=True, grad_weight=False)


def test_read_only_arrays_and_bf16(random):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    front = front_of()
    case = Case(random, front, "padded")
    for name in ("x", "weight", "bias", "ba", "dt_bias"):
        setattr(case, name, getattr(case, name).astype(bfloat16))
        getattr(case, name).flags.writeable = False
    case.grads = [one.astype(bfloat16) for one in case.grads]

    class OfNumpy:
        of = numpy = staticmethod(lambda one: one)
        backends = ["reference"]

    gradients = case.call(OfNumpy)
    assert {one.dtype.name for one in gradients[:3]} == {"bfloat16"}
    assert gradients.a_log.dtype == np.float32 and gradients.dt_bias.dtype == bfloat16
    case.check(OfNumpy, gradients, tolerance=0.01)
    with pytest.raises(ValueError, match="^grad_x: is read-only, but it is written"):
        case.call(OfNumpy, grad_x=case.x)


def test_a_workspace_is_allocated_if_it_is_needed(arrays, random, monkeypatch):
    sizes, compute = [], _core.backward_groups

    def needing(*values):
        if "workspace" not in [one for one in values if isinstance(one, str)]:
            return 1 << 20
        sizes.append(next(value.nbytes for name, value in zip(values, values[1:])
                          if isinstance(name, str) and name == "workspace"))
        return compute(*values)

    monkeypatch.setattr(_core, "backward_groups", needing)
    case = Case(random, front_of())
    case.check(arrays, case.call(arrays))
    case.check(arrays, case.call(arrays, workspace=arrays.of(np.zeros(2 << 20, np.uint8))))
    assert sizes == [1 << 20, 2 << 20]


def test_errors_name_the_argument(arrays, random):
    case = Case(random, front_of("flat"))
    groups = case.front.groups
    grads = [arrays.of(one) for one in case.grads]

    def refused(error, match, **changes):
        with pytest.raises(error, match=match):
            case.call(arrays, **changes)

    refused(TypeError, "^grad_groups: is builtins.NoneType; expected a sequence of arrays",
            grad_groups=None)
    refused(ValueError, "^grad_groups: are 3, but there are 4 groups", grad_groups=grads[:3])
    refused(ValueError, r"^grad_groups\[1\]: shape is \(24, 4, 8\); expected \(24, 2, 16\)",
            grad_groups=[grads[0], grads[2], *grads[2:]])
    wide = arrays.of(np.zeros((TOKENS, 2, 32), np.float32))[:, :, ::2]
    refused(ValueError, r"^grad_groups\[0\]: has a channel stride of 2; expected 1",
            grad_groups=[wide, *grads[1:]])
    half = arrays.of(case.grads[3].astype(np.float16))
    refused(ValueError, r"^grad_groups\[3\]: dtype is f16, but the group copies x, which has f32",
            grad_groups=[*grads[:3], half])
    refused(ValueError, "^groups: have 80 channels, but weight has 96",
            groups=[groups[0]._replace(heads=1), *groups[1:]],
            grad_groups=[arrays.of(case.grads[0][:, :1].copy()), *grads[1:]])
    refused(ValueError, r"^groups\[2\]: input_scale is 2; expected 1 in a backward call",
            groups=[*groups[:2], groups[2]._replace(input_scale=2), groups[3]])
    refused(NotImplementedError, "^groups: two of them read the same column of x",
            groups=[groups[0], groups[1]._replace(input=HeadMap(31)), *groups[2:]])
    refused(ValueError, "^groups: read 160 columns, but x has 128",
            groups=[*groups, groups[0]], grad_groups=[*grads, grads[0]])
    refused(ValueError, r"^groups\[3\]: map reaches beyond the 128 columns",
            groups=[*groups[:3], groups[3]._replace(input=HeadMap(97))])
    refused(ValueError, "^grad_g: is given, but gates are None", gates=None)
    refused(ValueError, "^grad_a: is given, but gates are None", gates=None, grad_g=None,
            grad_beta=None, grad_a=arrays.of(case.ba))
    refused(ValueError, "^grad_beta: .*'heads'. is 3", grad_beta=arrays.of(case.grad_g[:, :3]))
    gates = case.front.gates(*map(arrays.of, (case.ba, case.a_log, case.dt_bias)))
    refused(ValueError, "^b_map: two heads read the same column of b; expected different",
            gates=gates._replace(b_map=HeadMap(0, 1, 2, 1)))
    refused(ValueError, "^decay: is 'linear'; expected 'log', 'exp'",
            gates=gates._replace(decay="linear"))
    refused(ValueError, "^grad_x: overlaps x", grad_x=arrays.of(case.x))
    refused(ValueError, "^workspace: is not a contiguous array of bytes",
            workspace=arrays.of(case.weight))


def test_the_cpu_has_no_kernels_for_it(random):
    case = Case(random, front_of())
    with pytest.raises(NotImplementedError, match="^groups: the backend 'cpu' does not compute"):
        shortconv.backward_groups(case.grads, case.x, case.weight, groups=case.front.groups)


# ---- torch ----


@pytest.fixture
def calls(monkeypatch):
    """short_conv_groups with backend="reference", and the number of calls of backward_groups."""
    from shortconv import _training_groups

    count, compute = [0], _core.backward_groups

    def counting(*values):
        count[0] += 1
        return compute(*values)

    monkeypatch.setattr(_core, "backward_groups", counting)
    monkeypatch.setattr(_training_groups, "_refused", set())
    return count


class TorchCase(Case):
    """Inputs that need gradients: float32, and float64 for torch's operators."""

    def __init__(self, random, front, sequences="ragged", dtype=None, **options):
        super().__init__(random, front, sequences, **options)
        self.inputs = {name: torch.from_numpy(self.rows(one) if name in ("x", "ba") else one)
                       for name in ("x", "ba", "weight", "bias", "a_log", "dt_bias")
                       if (one := getattr(self, name)) is not None}
        if dtype is not None:
            self.inputs.update((name, one.to(dtype)) for name, one in self.inputs.items()
                               if name != "a_log")
        for one in self.inputs.values():
            one.requires_grad_()

    def run(self, x, ba, weight, a_log, dt_bias, bias=None, **changes):
        options = {name: torch.from_numpy(one) for name, one in self.options.items()}
        (groups, g, beta), _ = short_conv_groups(
            x, weight, bias, groups=self.front.groups, gates=self.front.gates(ba, a_log, dt_bias),
            activation="silu", **{"backend": "reference", **options, **changes})
        return [*groups, g, beta]

    def composed(self, x, ba, weight, a_log, dt_bias, bias=None):
        """The results of torch's operators in float64, one row for each of those with a sequence."""
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
        wide = {name: one.detach().double().requires_grad_() for name, one in self.inputs.items()}
        results, exact = self.run(**self.inputs, **changes), self.composed(**wide)
        keep = torch.from_numpy(self.has_sequence)
        used = range(len(results)) if used is None else used
        grads = []
        for i in used:
            grad = torch.from_numpy(random.standard_normal(results[i].shape)).to(results[i].dtype)
            grad.flatten(0, len(self.shape) - 1)[~keep] = torch.nan
            grads.append(grad)
        found = torch.autograd.grad([results[i] for i in used], list(self.inputs.values()), grads,
                                    allow_unused=True)
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
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance * scale,
                                       msg=lambda text, name=name: f"{name}: {text}")


@needs_torch
@pytest.mark.parametrize("layout", ["interleaved", "flat"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sequences", SEQUENCES)
def test_training_equals_autograd(random, calls, layout, options, sequences):
    case = TorchCase(random, front_of(layout, **options), sequences)
    case.check(random)
    assert calls == [1]
    case.check(random, backend=None)  # composed
    assert calls == [1]


@needs_torch
def test_training_without_bias_and_with_columns_that_no_group_reads(random, calls):
    case = TorchCase(random, front_of("flat"), "padded", has_bias=False, extra=5)
    case.check(random)
    assert calls == [1]


@needs_torch
@pytest.mark.parametrize("used", [[0], [2], [1, 3], [2, 4], [0, 5]])
def test_training_with_outputs_that_are_not_used(random, calls, used):
    TorchCase(random, front_of(), "padded").check(random, used)
    assert calls == [1]


@needs_torch
def test_training_in_bf16(random, calls):
    case = TorchCase(random, front_of(), "padded", dtype=torch.bfloat16)
    case.check(random, tolerance=0.02)
    assert calls == [1]
    mixed = TorchCase(random, front_of())
    mixed.inputs["dt_bias"] = mixed.inputs["dt_bias"].detach().bfloat16().requires_grad_()
    mixed.check(random, tolerance=0.005)
    assert calls == [2]


@needs_torch
def test_training_takes_the_gradients_of_sums(random, calls):
    """Those are expanded: their channels are not adjacent."""
    case = TorchCase(random, front_of())
    results = case.run(**case.inputs)
    ones = [torch.ones_like(one) for one in results]
    expected = torch.autograd.grad(results, list(case.inputs.values()), ones, retain_graph=True)
    found = torch.autograd.grad(sum(one.sum() for one in results), list(case.inputs.values()))
    assert all(map(torch.equal, found, expected)) and calls == [2]


@needs_torch
def test_training_differentiates_only_what_is_needed(random, calls):
    case = TorchCase(random, front_of())
    inputs = {name: one.detach() for name, one in case.inputs.items()}
    inputs["weight"].requires_grad_()
    sum(one.sum() for one in case.run(**inputs)[:3]).backward()
    assert calls == [1]
    sum(one.sum() for one in case.run(**case.inputs)[:3]).backward()
    assert torch.equal(inputs["weight"].grad, case.inputs["weight"].grad)
    assert inputs["x"].grad is None and case.inputs["ba"].grad is None


@needs_torch
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


@needs_torch
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


@needs_torch
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
    pytest.importorskip("torch")
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


@needs_torch
def test_torch_compiles_the_whole_graph(torch_call):
    run, tensors = torch_call
    compiled = torch.compile(lambda **tensors: [one + 1 for one in run(**tensors)],
                             backend="aot_eager", fullgraph=True)
    for got, expected in zip(compiled(**tensors), run(**tensors)):
        torch.testing.assert_close(got, expected + 1, rtol=0, atol=0, equal_nan=True)


@needs_torch
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
