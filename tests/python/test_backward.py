"""shortconv.backward against the oracle, which is compared with finite differences here."""

import json
import subprocess
import sys

import numpy as np
import oracle
import pytest
import shortconv
from shortconv import _core

WIDTHS = shortconv.capabilities()["widths"]
ACTIVATIONS = [None, *shortconv.capabilities()["activations"]]
ROWS = ("x", "input_gate", "output_gate")


@pytest.fixture
def arrays(arrays):
    """Those on devices whose backend has gradients."""
    if arrays.kind == "torch-cuda":
        from grids import has_gradients

        if not has_gradients("cuda"):
            pytest.skip("the CUDA backend has no gradients")
    return arrays


def problem(random, lengths, channels, width, dilation=1, dtype=np.float32):
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens, states = (bounds[-1], channels), (len(lengths), (width - 1) * dilation, channels)
    shapes = {"x": tokens, "weight": (channels, width), "bias": (channels,), "input_gate": tokens,
              "output_gate": tokens, "initial_state": states, "grad_out": tokens,
              "grad_final_state": states}
    return bounds, {name: random.standard_normal(shape).astype(dtype)
                    for name, shape in shapes.items()}


def expected_of(p, bounds, activation, **options):
    if activation == "none":
        activation = None
    return oracle.backward(**p, bounds=bounds, activation=activation, **options)


def assert_gradients(arrays, actual, expected, tolerance=2e-5):
    for name, one in actual._asdict().items():
        if one is None:
            continue
        found = arrays.numpy(one).astype(np.float64)
        assert found.shape == expected[name].shape
        # Sums over tokens: the error grows with the values that are added, not with the sum.
        scale = max(1, np.abs(expected[name]).max())
        np.testing.assert_allclose(found, expected[name], rtol=tolerance, atol=tolerance * scale,
                                   err_msg=name)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("options", [{}, {"dilation": 3}, {"residual": True}])
def test_the_oracle_equals_finite_differences(random, activation, options):
    bounds, p = problem(random, [3, 0, 1, 5], 2, 3, options.get("dilation", 1), np.float64)
    if "residual" in options:
        del p["input_gate"], p["output_gate"]
    grads = expected_of(p, bounds, activation, **options)

    def loss(**p):
        grad_out, grad_final = p.pop("grad_out"), p.pop("grad_final_state")
        state = p.pop("initial_state").copy()
        out = shortconv.reference.forward(**p, state=state, query_start_loc=bounds,
                                          initial_state=True, activation=activation, **options)
        return (out * grad_out).sum() + (state * grad_final).sum()

    step = 1e-6
    for name in grads:
        if name not in p:
            continue
        for at in np.ndindex(p[name].shape):
            moved = [{**p, name: p[name].copy()} for _ in range(2)]
            moved[0][name][at] -= step
            moved[1][name][at] += step
            slope = (loss(**moved[1]) - loss(**moved[0])) / (2 * step)
            assert abs(slope - grads[name][at]) < 1e-7, (name, at)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_gradient_equals_the_oracle(arrays, random, width, activation):
    bounds, p = problem(random, [1, 0, 7, width, 70, 2], 24, width)
    expected = expected_of(p, bounds, activation)
    given = {name: arrays.of(one) for name, one in p.items()}
    for backend in arrays.backends:
        grads = shortconv.backward(**given, query_start_loc=arrays.of(bounds),
                                   activation=activation, backend=backend)
        assert isinstance(grads, shortconv.Gradients)
        assert all(one is not None for one in grads)
        assert_gradients(arrays, grads, expected)


def test_dense_batches_residual_dilation_and_seq_idx(arrays, random):
    bounds, p = problem(random, [9, 9], 16, 3, dilation=2)
    del p["input_gate"], p["output_gate"]
    expected = expected_of(p, bounds, "silu", residual=True, dilation=2)
    expected["x"] = expected["x"].reshape(2, 9, 16)
    given = {name: arrays.of(one.reshape(2, 9, 16) if name in ("x", "grad_out") else one)
             for name, one in p.items()}
    for backend in arrays.backends:
        grads = shortconv.backward(**given, residual=True, dilation=2, activation="silu",
                                   backend=backend)
        assert grads.input_gate is None and grads.output_gate is None
        assert_gradients(arrays, grads, expected)

    bounds, p = problem(random, [4, 3, 11], 16, 4)
    numbers = np.repeat([5, -1, 2], [4, 3, 11])
    kept = {name: p[name] for name in ("x", "weight", "bias", "grad_out")}
    kept["grad_out"] = np.where(numbers[:, None] < 0, np.float32(0), kept["grad_out"])
    expected = expected_of(kept, bounds, None)
    expected["x"][4:7] = 0
    kept["grad_out"] = np.where(numbers[:, None] < 0, np.float32(np.nan), kept["grad_out"])
    for backend in arrays.backends:
        grads = shortconv.backward(**{name: arrays.of(one) for name, one in kept.items()},
                                   seq_idx=arrays.of(numbers), backend=backend)
        assert_gradients(arrays, grads, expected)


def test_only_what_is_asked_for_is_computed_and_given_arrays_are_written(arrays, random):
    bounds, p = problem(random, [5, 8], 8, 4)
    given = {name: arrays.of(one) for name, one in p.items()}
    whole = shortconv.backward(**given, query_start_loc=arrays.of(bounds))
    for name in whole._fields:
        flags = {f"grad_{one}": one == name for one in whole._fields}
        grads = shortconv.backward(**given, query_start_loc=arrays.of(bounds), **flags)
        assert [one is None for one in grads] == [one != name for one in whole._fields]
        own = arrays.of(np.full(p[name].shape, np.nan, np.float32))
        flags[f"grad_{name}"] = own
        returned = shortconv.backward(**given, query_start_loc=arrays.of(bounds), **flags)
        assert getattr(returned, name) is own
        for one in (getattr(grads, name), own):
            np.testing.assert_array_equal(arrays.numpy(one), arrays.numpy(getattr(whole, name)))


def test_accumulate_adds(arrays, random):
    bounds, p = problem(random, [5, 8], 8, 4)
    given = {name: arrays.of(one) for name, one in p.items()}
    weight, bias = (np.full(p[name].shape, 3, np.float32) for name in ("weight", "bias"))
    sums = {"grad_weight": arrays.of(weight), "grad_bias": arrays.of(bias)}
    shortconv.backward(**given, query_start_loc=arrays.of(bounds), accumulate=True, **sums)
    expected = expected_of(p, bounds, None)
    for name in ("weight", "bias"):
        found = arrays.numpy(sums[f"grad_{name}"])
        np.testing.assert_allclose(found, expected[name] + 3, rtol=2e-5, atol=2e-4)
    with pytest.raises(ValueError, match="^grad_bias: is not given, but accumulate adds to it"):
        shortconv.backward(**given, accumulate=True, grad_weight=False)


def test_a_cut_sequence_has_the_same_bits(arrays, random):
    _, p = problem(random, [40], 24, 4)
    given = {name: p[name] for name in ("x", "weight", "bias", "initial_state", "grad_out",
                                        "grad_final_state")}
    whole = shortconv.backward(**{name: arrays.of(one) for name, one in given.items()},
                               activation="silu")
    for cut in (1, 2, 3, 17, 38, 39):
        values = np.concatenate([p["initial_state"][0], p["x"]])
        parts, grad_state = [], p["grad_final_state"]
        for rows in (slice(cut, 40), slice(0, cut)):
            part = {**given, "x": p["x"][rows], "grad_out": p["grad_out"][rows],
                    "initial_state": values[None, rows.start : rows.start + 3],
                    "grad_final_state": grad_state}
            grads = shortconv.backward(**{name: arrays.of(one) for name, one in part.items()},
                                       activation="silu")
            grad_state = arrays.numpy(grads.initial_state)
            parts.insert(0, arrays.numpy(grads.x))
        np.testing.assert_array_equal(np.concatenate(parts), arrays.numpy(whole.x))
        np.testing.assert_array_equal(grad_state, arrays.numpy(whole.initial_state))


def test_bits_do_not_depend_on_strides_and_threads(arrays, random):
    bounds, p = problem(random, [70, 9, 130], 300, 4)
    given = {"query_start_loc": arrays.of(bounds), "activation": "silu"}
    whole = shortconv.backward(**{name: arrays.of(one) for name, one in p.items()}, **given)

    def wide(one):  # every other element, of rows that are not aligned
        memory = np.zeros((*one.shape[:-1], 2 * one.shape[-1] + 1), one.dtype)[..., 1::2]
        memory[...] = one
        return memory

    for layout in (np.asfortranarray, wide):
        for threads in (1, 2):
            other = shortconv.backward(
                **{name: arrays.of(layout(one)) for name, one in p.items()}, **given,
                threads=threads)
            for one, expected in zip(other, whole):
                np.testing.assert_array_equal(arrays.numpy(one), arrays.numpy(expected))


def test_errors_name_the_argument(arrays, random):
    bounds, p = problem(random, [5, 8], 8, 4)
    given = {name: arrays.of(one) for name, one in p.items()}
    with pytest.raises(ValueError, match="^grad_out: axis 0 .'tokens'. is 5, but x made 'tokens'"):
        shortconv.backward(**{**given, "grad_out": given["grad_out"][:5]},
                           query_start_loc=arrays.of(bounds))
    with pytest.raises(ValueError, match="^residual: cannot be combined"):
        shortconv.backward(**given, query_start_loc=arrays.of(bounds), residual=True)
    kept = {name: given[name] for name in ("x", "weight", "grad_out")}
    with pytest.raises(ValueError, match="^grad_bias: is given, but bias is absent"):
        shortconv.backward(**kept, grad_bias=given["bias"])
    with pytest.raises(ValueError, match="^grad_weight: overlaps weight"):
        shortconv.backward(**kept, grad_weight=given["weight"])
    with pytest.raises(ValueError, match="^workspace: is not a contiguous array of bytes"):
        shortconv.backward(**kept, workspace=given["weight"])


def test_a_workspace_is_taken_though_the_cpu_needs_none(random):
    _, p = problem(random, [5], 8, 4)
    kept = {name: p[name] for name in ("x", "weight", "grad_out")}
    memory = np.full(64, 7, np.uint8)
    grads = shortconv.backward(**kept, workspace=memory)
    assert (memory == 7).all() and np.isfinite(grads.x).all()


@pytest.fixture
def needing_a_workspace(monkeypatch):
    """A core whose gradients need a MiB, and a list of the sizes that it was given."""
    sizes = []

    def needing(*values):
        pairs = dict(zip(values[8::2], values[9::2]))
        if "workspace" not in pairs:
            return 1 << 20
        sizes.append(pairs["workspace"].nbytes)
        return backward(*values)

    backward = _core.backward
    monkeypatch.setattr(_core, "backward", needing)
    return sizes


def test_a_workspace_is_allocated_if_it_is_needed(arrays, random, needing_a_workspace):
    _, p = problem(random, [5], 8, 4)
    kept = {name: arrays.of(p[name]) for name in ("x", "weight", "grad_out")}
    grads = shortconv.backward(**kept)
    expected = expected_of({name: p[name] for name in kept}, [0, 5], None)
    assert_gradients(arrays, grads, expected)
    memory = arrays.of(np.zeros(2 << 20, np.uint8))
    shortconv.backward(**kept, workspace=memory)
    assert needing_a_workspace == [1 << 20, 2 << 20]
    if arrays.kind == "torch-cpu":
        from shortconv.torch import short_conv

        x = kept["x"].requires_grad_()
        short_conv(x, kept["weight"]).backward(kept["grad_out"])
        np.testing.assert_array_equal(x.grad.numpy(), grads.x.numpy())
        assert needing_a_workspace == [1 << 20, 2 << 20, 1 << 20]


def test_a_known_workspace_saves_a_call_of_the_core(random, monkeypatch):
    """Of calls with the same shapes; more sequences need more, and so may a new version."""
    torch = pytest.importorskip("torch")
    from shortconv import _workspaces
    from shortconv.torch import short_conv

    calls, least = [], [100]

    def needing(*values):
        pairs = dict(zip(values[8::2], values[9::2]))
        bounds, memory = pairs.get("query_start_loc"), pairs.get("workspace")
        needed = least[0] * (1 if bounds is None else len(bounds) - 1)
        calls.append(None if memory is None else memory.nbytes)
        if memory is None:
            return needed
        if memory.nbytes < needed:
            raise ValueError(f"workspace: has {memory.nbytes} bytes; expected {needed}")
        return backward(*values)

    backward = _core.backward
    monkeypatch.setattr(_core, "backward", needing)
    monkeypatch.setattr(_workspaces, "_known", {})
    _, p = problem(random, [13], 8, 4)
    x, weight, grad = (torch.from_numpy(p[name]) for name in ("x", "weight", "grad_out"))
    two = torch.tensor([0, 6, 13], dtype=torch.int32)

    def train(bounds=None):
        leaf = x.clone().requires_grad_()
        short_conv(leaf, weight.requires_grad_(), query_start_loc=bounds).backward(grad)
        return leaf.grad

    def compute(bounds=None):
        return shortconv.backward(grad, x, weight.detach(), query_start_loc=bounds).x

    def made():
        count = calls[:]
        calls.clear()
        return count

    for bounds, size in ((None, 100), (two, 200)):
        first = train(bounds)
        assert made() == [None, size]
        for run in (train, compute):
            assert torch.equal(run(bounds), first) and made() == [size]
    least[0] = 300
    assert torch.equal(compute(two), first) and made() == [200, None, 600]
    compute(two)
    with pytest.raises(ValueError, match="^workspace: has 7 bytes; expected 600"):
        shortconv.backward(grad, x, weight.detach(), query_start_loc=two,
                           workspace=torch.empty(7, dtype=torch.uint8))
    assert made() == [600, 7]
    shortconv.backward(grad, x, weight.detach(), query_start_loc=two, grad_weight=False)
    assert made() == [None, 600] and len(_workspaces._known) == 2


def test_read_only_arrays_and_bf16(random):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    bounds, p = problem(random, [5, 8], 8, 4)
    small = {name: one.astype(bfloat16) for name, one in p.items()}
    for one in small.values():
        one.flags.writeable = False
    grads = shortconv.backward(**small, query_start_loc=bounds, activation="silu")
    expected = expected_of(small, bounds, "silu")
    for name, one in grads._asdict().items():
        assert one.dtype == bfloat16 and one.shape == expected[name].shape
        # Half a unit of the last of 8 bits, and the fp32 sums before it.
        error = np.abs(one.astype(np.float64) - expected[name])
        assert (error <= np.abs(expected[name]) / 256 + 1e-4).all(), name
    with pytest.raises(ValueError, match="^grad_x: is read-only, but it is written"):
        shortconv.backward(**small, query_start_loc=bounds, grad_x=small["x"])


def test_types_of_results(arrays, random):
    _, p = problem(random, [6], 8, 4)
    kept = {name: arrays.of(p[name]) for name in ("weight", "bias")}
    half = {name: arrays.of(p[name].astype(np.float16)) for name in ("x", "grad_out")}
    grads = shortconv.backward(**kept, **half)
    assert arrays.numpy(grads.x).dtype == np.float16
    assert arrays.numpy(grads.weight).dtype == arrays.numpy(grads.bias).dtype == np.float32


def test_the_table_of_arguments():
    rows = {one["name"]: one["written"] for one in json.loads(_core.arguments("backward"))}
    assert rows["grad_x"] and rows["grad_bias"] and not rows["grad_out"] and not rows["x"]
    with pytest.raises(ValueError, match="^operation: is not 'forward' or 'backward'"):
        _core.arguments("sideways")


def test_numpy_is_enough():
    code = """
import sys
sys.modules.update(torch=None, jax=None, cupy=None)  # importing them fails
import numpy, shortconv
grads = shortconv.backward(*[numpy.ones((2, 4), "f")] * 2, numpy.ones((4, 2), "f"))
assert (grads.x == [[2] * 4, [1] * 4]).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
