"""shortconv.backward_groups against formulas in float64, and short_conv_groups with it against
torch's autograd in float64.
"""

import numpy as np
import oracle
import pytest
import shortconv
from shortconv import Gates, Group, HeadMap, _core, models

try:
    import torch
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
