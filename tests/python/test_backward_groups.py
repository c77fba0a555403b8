"""shortconv.backward_groups against formulas in float64."""

import numpy as np
import pytest
import shortconv
from grouped_case import OPTIONS, SEQUENCES, TOKENS, Case, front_of
from shortconv import HeadMap, _core


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
    case = Case(random, front_of("flat"), "padded", extra=4)
    case.x[:, -4:] = np.nan
    case.check(arrays, case.call(arrays))
    own = arrays.of(np.full(case.x.shape, 7, np.float32))
    gradients = case.call(arrays, grad_x=own)
    assert gradients.x is own
    found = arrays.numpy(own).copy()
    assert (found[:, -4:] == 7).all()
    found[:, -4:] = 0
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
    refused(NotImplementedError, "^groups: read 160 columns, but x has 128",
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
