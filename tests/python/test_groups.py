"""Calls with groups against forward, l2_norm and delta_gates, bit for bit, and groups of models.

The layouts are written out here as the models' own code reads them: with reshape and split.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import shortconv
from shortconv import models

LENGTHS = [5, 1, 0, 9]
TOKENS = sum(LENGTHS)
BOUNDS = np.cumsum([0, *LENGTHS]).astype(np.int32)


def split_interleaved(rows, k_heads, v_heads, k_dim, v_dim):
    """q, k, v and z as Qwen3-Next splits its projection."""
    ratio = v_heads // k_heads
    blocks = rows.reshape(len(rows), k_heads, -1)
    q, k, v, z = np.split(blocks, np.cumsum([k_dim, k_dim, ratio * v_dim]), axis=-1)
    return q, k, v.reshape(len(rows), v_heads, v_dim), z.reshape(len(rows), v_heads, v_dim)


def split_flat(rows, k_heads, v_heads, k_dim, v_dim):
    """q, k, v and z as Qwen3.5 splits its projection."""
    sizes = [k_heads * k_dim, k_heads * k_dim, v_heads * v_dim]
    q, k, v, z = np.split(rows, np.cumsum(sizes), axis=-1)
    shape = len(rows), k_heads, k_dim
    return (q.reshape(shape), k.reshape(shape), v.reshape(len(rows), v_heads, v_dim),
            z.reshape(len(rows), v_heads, v_dim))


def assert_same(actual, expected):
    np.testing.assert_array_equal(actual, expected)


class Layer:
    """A gated delta net with arrays of numpy."""

    def __init__(self, random, layout, k_heads=2, v_heads=6, k_dim=16, v_dim=8, **options):
        self.sizes = k_heads, v_heads, k_dim, v_dim
        self.front = models.gated_delta_net(
            num_k_heads=k_heads, num_v_heads=v_heads, head_k_dim=k_dim, head_v_dim=v_dim,
            layout=layout, **options)
        self.x = random.standard_normal((TOKENS, self.front.columns), np.float32)
        self.ba = 4 * random.standard_normal((TOKENS, 2 * v_heads), np.float32)
        self.weight = random.standard_normal((self.front.channels, 4), np.float32)
        self.a_log = random.standard_normal(v_heads, np.float32)
        self.dt_bias = random.standard_normal(v_heads, np.float32)
        self.state = random.standard_normal((4, 3, self.front.channels), np.float32)
        split = split_interleaved if layout == "interleaved" else split_flat
        self.q, self.k, self.v, self.z = split(self.x, *self.sizes)
        self.channels = np.concatenate(
            [one.reshape(TOKENS, -1) for one in (self.q, self.k, self.v)], axis=-1)


@pytest.mark.parametrize("layout", ["interleaved", "flat"])
def test_gated_delta_net(arrays, random, layout):
    layer = Layer(random, layout)
    for backend in arrays.backends:
        options = {"activation": "silu", "query_start_loc": arrays.of(BOUNDS), "backend": backend,
                   "initial_state": True}
        plain_state, state = (arrays.of(layer.state.copy()) for _ in range(2))
        plain = arrays.numpy(shortconv.forward(
            arrays.of(np.ascontiguousarray(layer.channels)), arrays.of(layer.weight),
            state=plain_state, **options))
        gates = layer.front.gates(*map(arrays.of, (layer.ba, layer.a_log, layer.dt_bias)))
        groups, g, beta = shortconv.forward_groups(
            arrays.of(layer.x), arrays.of(layer.weight), groups=layer.front.groups, gates=gates,
            state=state, **options)
        q, k, v, z = map(arrays.numpy, groups)
        keys = layer.q[0].size
        for got, first in ((q, 0), (k, keys)):
            rows = np.ascontiguousarray(plain[:, first:first + keys]).reshape(layer.q.shape)
            assert_same(got, arrays.numpy(shortconv.l2_norm(arrays.of(rows), backend=backend)))
        assert_same(v, plain[:, 2 * keys:].reshape(v.shape))
        assert_same(z, layer.z)
        assert_same(arrays.numpy(state), arrays.numpy(plain_state))
        for got, expected in zip((g, beta), shortconv.delta_gates(gates, backend=backend)):
            assert_same(arrays.numpy(got), arrays.numpy(expected))


@pytest.mark.parametrize("layout", ["interleaved", "flat"])
def test_gates_of_a_layout(random, layout):
    layer = Layer(random, layout)
    k_heads, v_heads, _, _ = layer.sizes
    if layout == "interleaved":
        b, a = np.split(layer.ba.reshape(TOKENS, k_heads, -1), 2, axis=-1)
    else:
        b, a = np.split(layer.ba, 2, axis=-1)
    b, a = (one.reshape(TOKENS, v_heads).astype(np.float64) for one in (b, a))
    g, beta = shortconv.delta_gates(layer.front.gates(layer.ba, layer.a_log, layer.dt_bias))
    expected = -np.exp(layer.a_log.astype(np.float64)) * np.log1p(np.exp(a + layer.dt_bias))
    np.testing.assert_allclose(g, expected, rtol=2e-6)
    np.testing.assert_allclose(beta, 1 / (1 + np.exp(-b)), rtol=2e-6)


def test_who_normalizes_is_an_argument(random):
    normalized = Layer(random, "flat").front.groups
    raw = Layer(random, "flat", normalize=False, copy_z=False).front.groups
    assert [one.l2_norm for one in normalized] == [True, True, False, False]
    assert [one.l2_norm for one in raw] == [False, False, False]


@pytest.mark.parametrize("decay, factor", [("log", 1), ("exp", 2)])
def test_decode_continues_a_prefill(arrays, random, decay, factor):
    layer = Layer(random, "interleaved", decay=decay, beta_factor=factor)
    x, ba = arrays.of(layer.x), arrays.of(layer.ba)
    constants = arrays.of(layer.a_log), arrays.of(layer.dt_bias)
    options = {"groups": layer.front.groups, "activation": "silu"}
    weight = arrays.of(layer.weight)
    for backend in arrays.backends:
        whole_state, state = (arrays.of(np.zeros_like(layer.state[:1])) for _ in range(2))
        whole = shortconv.forward_groups(
            x, weight, gates=layer.front.gates(ba, *constants), state=whole_state,
            backend=backend, **options)
        for token in range(TOKENS):
            one = shortconv.decode_groups(
                x[token:token + 1], weight, state=state, backend=backend,
                gates=layer.front.gates(ba[token:token + 1], *constants), **options)
            for got, expected in zip((*one.groups, one.g, one.beta),
                                     (*whole.groups, whole.g, whole.beta)):
                assert_same(arrays.numpy(got)[0], arrays.numpy(expected)[token])
        assert_same(arrays.numpy(state), arrays.numpy(whole_state))


def test_kimi_delta_attention(random):
    front = models.kimi_delta_attention(num_heads=3, head_dim=8, head_v_dim=4)
    assert (front.columns, front.channels) == (60, 60)
    x = random.standard_normal((7, 60), np.float32)
    weight = random.standard_normal((60, 4), np.float32)
    q, k, v = shortconv.forward_groups(x, weight, groups=front.groups).groups
    plain = shortconv.forward(x, weight)
    assert_same(np.concatenate([one.reshape(7, -1) for one in (q, k, v)], axis=1), plain)
    with pytest.raises(ValueError, match="gates: this layer has none"):
        front.gates(x, x, x)


def test_mamba2_scales_its_inputs(random):
    scales = 0.25, 3.0, 0.7
    front = models.mamba2(num_heads=2, head_dim=6, n_groups=1, state_size=5, input_scales=scales)
    assert (front.columns, front.channels) == (12 + 22 + 2, 22)
    rows = random.standard_normal((9, front.columns), np.float32)
    weight = random.standard_normal((22, 4), np.float32)
    bias = random.standard_normal(22, np.float32)
    states = [np.zeros((1, 3, 22), np.float32) for _ in range(2)]
    x, b, c = shortconv.forward_groups(rows, weight, bias, groups=front.groups, state=states[0],
                                       activation="silu").groups
    factors = np.repeat(np.array(scales, np.float32), [12, 5, 5])
    plain = shortconv.forward(rows[:, 12:34] * factors, weight, bias, state=states[1],
                              activation="silu")
    assert_same(np.concatenate([one.reshape(9, -1) for one in (x, b, c)], axis=1), plain)
    assert_same(*states)


def test_lfm2(random):
    front = models.lfm2(hidden_size=12)
    projected = random.standard_normal((2, 7, 36), np.float32)
    weight = random.standard_normal((12, 3), np.float32)
    gates = {"input_gate": projected[..., :12], "output_gate": projected[..., 12:24]}
    (y,), _, _ = shortconv.forward_groups(projected, weight, groups=front.groups, **gates)
    assert_same(y[:, :, 0], shortconv.forward(projected[..., 24:], weight, **gates))


def test_outputs_may_be_columns_of_one_array(random):
    front = models.kimi_delta_attention(num_heads=2, head_dim=8)
    x = random.standard_normal((5, 48), np.float32)
    weight = random.standard_normal((48, 4), np.float32)
    packed = np.full((5, 64), 7, np.float32)
    outs = [packed[:, first:first + 16].reshape(5, 2, 8) for first in (0, 20, 40)]
    results = shortconv.forward_groups(x, weight, groups=front.groups, outs=outs).groups
    assert all(result is out for result, out in zip(results, outs))
    expected = shortconv.forward(x, weight)
    assert_same(np.concatenate([packed[:, i:i + 16] for i in (0, 20, 40)], axis=1), expected)
    assert (packed[:, 16:20] == 7).all() and (packed[:, 56:] == 7).all()


def test_bfloat16_and_read_only_arrays_of_numpy(random):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    layer = Layer(random, "flat")
    x, ba = layer.x.astype(ml_dtypes.bfloat16), layer.ba.astype(ml_dtypes.bfloat16)
    x.flags.writeable = False
    results, g, _ = shortconv.forward_groups(
        x, layer.weight, groups=layer.front.groups, activation="silu",
        gates=layer.front.gates(ba, layer.a_log, layer.dt_bias))
    assert [one.dtype.name for one in results] == 4 * ["bfloat16"] and g.dtype == np.float32
    norms = np.linalg.norm(results[0].astype(np.float32), axis=-1)
    np.testing.assert_allclose(norms, 1, atol=0.01)
    frozen = np.empty((TOKENS, 2, 16), ml_dtypes.bfloat16)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out: is read-only, but it is written"):
        shortconv.l2_norm(frozen, out=frozen)
    # A state is only read with seq_idx.
    state = layer.state[:1].copy()
    state.flags.writeable = False
    options = {"groups": layer.front.groups, "state": state, "initial_state": True}
    shortconv.forward_groups(layer.x, layer.weight, seq_idx=np.zeros(TOKENS, np.int32), **options)
    with pytest.raises(ValueError, match="state: is read-only, but it is written"):
        shortconv.forward_groups(layer.x, layer.weight, **options)
    violations = np.zeros((13, 2), np.int64)
    violations.flags.writeable = False
    with pytest.raises(ValueError, match="violations: is read-only, but it is written"):
        shortconv.forward_groups(layer.x, layer.weight, groups=layer.front.groups,
                                 violations=violations)


def test_arguments_that_do_not_fit_are_refused(random):
    layer = Layer(random, "flat")

    def call(**changes):
        return shortconv.forward_groups(**{
            "x": layer.x, "weight": layer.weight, "groups": layer.front.groups, **changes})

    with pytest.raises(ValueError, match=r"groups: have 80 channels, but weight has 112"):
        call(groups=layer.front.groups[1:])
    with pytest.raises(ValueError, match="outs: are 1, but there are 4 groups"):
        call(outs=[None])
    with pytest.raises(ValueError, match=r"outs\[0\]: shape is \(15, 3, 16\); expected \(15, 2"):
        call(outs=[np.empty((15, 3, 16), np.float32), None, None, None])
    with pytest.raises(ValueError, match="g: is given, but gates are None"):
        call(g=np.empty((15, 6), np.float32))
    with pytest.raises(ValueError, match="decay: is 'linear'; expected 'log', 'exp'"):
        call(gates=layer.front.gates(layer.ba, layer.a_log, layer.dt_bias)._replace(decay="linear"))
    with pytest.raises(TypeError, match=r"groups\[0\].input: is builtins.int; expected HeadMap"):
        call(groups=[shortconv.Group(2, 4, 5)])
    with pytest.raises(TypeError, match=r"groups\[1\]: is builtins.tuple; expected Group"):
        call(groups=[layer.front.groups[0], (2, 4)])
    with pytest.raises(ValueError, match=r"groups\[0\].heads: is -1; expected 0 or more"):
        call(groups=[shortconv.Group(-1, 4)])
    with pytest.raises(ValueError, match=r"groups\[0\]: eps is 0; expected a positive number"):
        call(groups=[layer.front.groups[0]._replace(eps=0), *layer.front.groups[1:]])
    with pytest.raises(ValueError, match="x: has 4 axes; expected 2 or 3"):
        call(x=layer.x[None, None])
    with pytest.raises(TypeError, match="a_log: is builtins.list; expected an array"):
        call(gates=layer.front.gates(layer.ba, [0.0], layer.dt_bias))
    with pytest.raises(ValueError, match=r"outs\[0\]: overlaps x; expected separate memory"):
        call(outs=[layer.x[:, :32].reshape(TOKENS, 2, 16), None, None, None])
    with pytest.raises(ValueError, match="eps: is 0; expected a positive number"):
        shortconv.l2_norm(layer.q.copy(), eps=0)
    with pytest.raises(ValueError, match="beta_factor: is 3; expected 1 or 2"):
        gates = layer.front.gates(layer.ba, layer.a_log, layer.dt_bias)
        shortconv.delta_gates(gates._replace(beta_factor=3))
    with pytest.raises(ValueError, match="num_k_heads: is 0; expected an integer of 1 or more"):
        models.gated_delta_net(num_k_heads=0, num_v_heads=0, head_k_dim=8, head_v_dim=8)
    with pytest.raises(ValueError, match="num_v_heads: is 5, which is no multiple of num_k_heads"):
        models.gated_delta_net(num_k_heads=2, num_v_heads=5, head_k_dim=8, head_v_dim=8)
    with pytest.raises(ValueError, match="layout: is 'packed'; expected 'interleaved' or 'flat'"):
        models.gated_delta_net(num_k_heads=2, num_v_heads=4, head_k_dim=8, head_v_dim=8,
                               layout="packed")


def test_rows_of_one_array(random):
    """x, gates and outputs as columns of the same rows."""
    rows = random.standard_normal((6, 40), np.float32)
    weight = random.standard_normal((10, 4), np.float32)
    x, gate, out = rows[:, :10], rows[:, 10:20], rows[:, 20:30]
    expected = shortconv.forward(x, weight, input_gate=gate)
    shortconv.forward_groups(x, weight, groups=[shortconv.Group(1, 10)], input_gate=gate,
                             outs=[out.reshape(6, 1, 10)])
    assert_same(out, expected)
    both, ba = np.empty((6, 4), np.float32), random.standard_normal((6, 4), np.float32)
    gates = shortconv.Gates(ba, ba, np.zeros(2, np.float32), np.zeros(2, np.float32),
                            b_map=shortconv.HeadMap(2))
    g, beta = shortconv.delta_gates(gates)
    shortconv.forward_groups(x, weight, groups=[shortconv.Group(2, 5)], gates=gates,
                             g=both[:, :2], beta=both[:, 2:])
    assert_same(both, np.concatenate([g, beta], axis=1))


def test_checked_mode_of_every_call(tmp_path):
    code = """
import numpy, shortconv
x, weight = numpy.ones((4, 8), "f"), numpy.ones((8, 4), "f")
options = {"groups": [shortconv.Group(2, 4)], "gates": shortconv.Gates(
    x[:, :2], x[:, :2], x[0, :2], x[0, :2])}
shortconv.forward_groups(x, weight, query_start_loc=numpy.array([0, 4], "i4"), **options)
try:
    shortconv.forward_groups(x, weight, query_start_loc=numpy.array([0, 9], "i4"), **options)
except ValueError as error:
    assert str(error).startswith("shortconv.forward_groups: bad index values"), error
else:
    raise AssertionError("not found")
"""
    environment = {**os.environ, "SHORTCONV_CHECK": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)


@pytest.fixture
def torch_layer(random):
    torch = pytest.importorskip("torch")
    layer = Layer(random, "interleaved")
    arrays = {name: torch.from_numpy(getattr(layer, name))
              for name in ("x", "ba", "weight", "a_log", "dt_bias", "state")}

    def run(x, ba, weight, a_log, dt_bias, state):
        results, g, beta = shortconv.forward_groups(
            x, weight, groups=layer.front.groups, gates=layer.front.gates(ba, a_log, dt_bias),
            state=state, activation="silu")
        return *results, g, beta

    return run, arrays


def test_torch_refuses_gradients(torch_layer):
    import torch

    run, arrays = torch_layer
    arrays["weight"].requires_grad_()
    version = arrays["state"]._version
    with pytest.raises(NotImplementedError, match="forward_groups: has no backward pass"):
        run(**arrays)
    assert arrays["state"]._version == version
    with torch.no_grad():
        run(**arrays)
    assert arrays["state"]._version == version + 1
    with pytest.raises(NotImplementedError, match="l2_norm: has no backward pass"):
        shortconv.l2_norm(torch.ones(2, 3, 4, requires_grad=True))


def test_torch_compiles_the_whole_graph(torch_layer):
    import torch

    run, arrays = torch_layer
    plain, traced = ({name: one.clone() for name, one in arrays.items()} for _ in range(2))
    compiled = torch.compile(lambda **arguments: [one + 1 for one in run(**arguments)],
                             backend="aot_eager", fullgraph=True)
    for got, expected in zip(compiled(**traced), run(**plain)):
        assert torch.equal(got, expected + 1)
    assert torch.equal(traced["state"], plain["state"])
    norm = torch.compile(lambda x: shortconv.l2_norm(x), backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 2, 8)
    assert torch.equal(norm(x), shortconv.l2_norm(x))


def test_torch_traces_without_memory(torch_layer):
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    run, arrays = torch_layer
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(one) for name, one in arrays.items()}
        shapes = [tuple(one.shape) for one in run(**fake)]
    assert shapes == [tuple(one.shape) for one in run(**arrays)]
    meta = run(**{name: one.to("meta") for name, one in arrays.items()})
    assert [tuple(one.shape) for one in meta] == shapes and meta[0].is_meta
    negated = torch._neg_view(arrays["x"])
    with pytest.raises(NotImplementedError, match="x: is negated lazily"):
        run(**{**arrays, "x": negated})
    with pytest.raises(ValueError, match="weight: is on meta, but x is on cpu"):
        run(**{**arrays, "weight": arrays["weight"].to("meta")})


def test_torch_scripts_what_is_written(torch_layer):
    import torch

    run, arrays = torch_layer
    x, weight = arrays["x"], arrays["weight"]
    groups = models.gated_delta_net(num_k_heads=2, num_v_heads=6, head_k_dim=16, head_v_dim=8,
                                    layout="interleaved").groups
    function = lambda x, weight: shortconv.forward_groups(x, weight, groups=groups).groups
    traced = torch.jit.trace(function, (x, weight), check_trace=False)
    for got, expected in zip(traced(x, weight), function(x, weight)):
        assert torch.equal(got, expected)


def test_new_outputs_are_aligned_to_32_bytes(torch_layer):  # FlashInfer's kernels want that
    run, arrays = torch_layer
    for one in run(**arrays):
        assert one.data_ptr() % 32 == 0 and one.is_contiguous()


OTHER_GATES = {"decay": "exp", "beta_factor": 2.0, "round_beta": True}


OTHER_MAPS = {"a_map": shortconv.HeadMap(6), "b_map": shortconv.HeadMap(2)}


@pytest.mark.parametrize("options", [{}, OTHER_GATES])
@pytest.mark.parametrize("maps", [{}, OTHER_MAPS])
@pytest.mark.parametrize("is_batch", [False, True])
def test_new_outputs_equal_given_ones(torch_layer, options, maps, is_batch):
    """Calls with new outputs and no rare arguments have a way of their own to the core."""
    import torch

    _, arrays = torch_layer
    groups = models.gated_delta_net(num_k_heads=2, num_v_heads=6, head_k_dim=16, head_v_dim=8,
                                    layout="interleaved").groups
    x, ba = (one.bfloat16() for one in (arrays["x"], torch.cat([arrays["ba"]] * 2, 1)))
    if is_batch:
        x, ba = (torch.stack([one, one.flip(0)]) for one in (x, ba))
    a, b = (ba, ba) if maps else (ba[..., :6], ba[..., 6:12])
    gates = shortconv.Gates(a, b, arrays["a_log"], arrays["dt_bias"], **maps, **options)
    weight = arrays["weight"].bfloat16()
    outs = [x.new_empty(*x.shape[:-1], group.heads, group.head_dim) for group in groups]
    given = {"outs": outs, "g": torch.empty(*x.shape[:-1], 6),
             "beta": torch.empty(*x.shape[:-1], 6)}
    for with_gates in (gates, None):
        states = [arrays["state"].bfloat16() for _ in range(2)]
        results = [shortconv.forward_groups(
            x, weight, groups=groups, gates=with_gates, activation="silu", state=state, **more)
            for state, more in zip(states, ({}, given if with_gates else {"outs": outs}))]
        for one, other in zip(*(result.groups for result in results)):
            assert torch.equal(one, other) and one.dtype == other.dtype
        assert torch.equal(*states)
        for one, other in ((results[0].g, results[1].g), (results[0].beta, results[1].beta)):
            assert torch.equal(one, other) if with_gates else one is other is None


@pytest.mark.parametrize("name", ["x", "weight", "state", "ba", "a_log", "dt_bias"])
def test_torch_refuses_lazily_negated_tensors(torch_layer, name):
    import torch

    run, arrays = torch_layer
    arrays[name] = torch.complex(arrays[name], -arrays[name]).conj().imag
    assert arrays[name].is_neg()
    with pytest.raises(NotImplementedError, match="is negated lazily; pass its resolve_neg()"):
        run(**arrays)


def test_a_call_with_an_error_is_made_once(torch_layer, monkeypatch):
    """In the checked mode a call runs before it raises, and its report is told once."""
    import torch
    from shortconv import _core

    _, arrays = torch_layer
    calls = []
    original = _core.forward_groups
    monkeypatch.setattr(_core, "forward_groups", lambda *a: (calls.append(1), original(*a))[1])
    x, gates = arrays["x"], shortconv.Gates(*(arrays[n] for n in ("ba", "ba", "a_log", "dt_bias")))
    groups, weight = [shortconv.Group(2, 8)], arrays["weight"]
    with pytest.raises(ValueError, match="groups: have 16 channels, but weight has 112"):
        shortconv.forward_groups(x, weight, groups=groups)
    with pytest.raises(ValueError, match="groups: have 16 channels, but weight has 112"):
        shortconv.forward_groups(x, weight, groups=groups, outs=[torch.empty(TOKENS, 2, 8)])
    assert calls == [1, 1]
    for bad, error, message in (
            (x[0], ValueError, "x: has 1 axes; expected 2 or 3"),
            (x[None, None], ValueError, "x: has 4 axes; expected 2 or 3")):
        with pytest.raises(error, match=message):
            shortconv.forward_groups(bad, weight, groups=groups)
    for change, error, message in (
            ({"a": None}, TypeError, "a: is builtins.NoneType; expected an array with DLPack"),
            ({"a": arrays["a_log"]}, ValueError, "a: has 1 axes; expected 2 or 3"),
            ({"a_log": arrays["a_log"].sum()}, ValueError, "a_log: has 0 axes; expected 1"),
            ({"a_map": 3}, TypeError, "a_map: is builtins.int; expected HeadMap"),
            ({"decay": "linear"}, ValueError, "decay: is 'linear'; expected 'log', 'exp'")):
        with pytest.raises(error, match=message):
            shortconv.forward_groups(x, weight, groups=groups, gates=gates._replace(**change))
    with pytest.raises(TypeError, match="gates: is builtins.tuple; expected Gates"):
        shortconv.forward_groups(x, weight, groups=groups, gates=tuple(gates))


def test_a_graph_replays_batches_of_other_lengths(random):
    """A captured call reads the bounds, slots and rows of the time of its replay."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    layer = Layer(random, "interleaved", k_dim=64, v_dim=64)
    x, ba, weight, state = (torch.from_numpy(one).cuda().bfloat16()
                            for one in (layer.x, layer.ba, layer.weight, layer.state))
    a_log, dt_bias = (torch.from_numpy(one).cuda() for one in (layer.a_log, layer.dt_bias))
    bounds = torch.from_numpy(BOUNDS).cuda()
    slots = torch.arange(4, device="cuda", dtype=torch.int32)

    def call():
        groups, g, beta = shortconv.forward_groups(
            x, weight, groups=layer.front.groups, gates=layer.front.gates(ba, a_log, dt_bias),
            state=state, read_slots=slots, query_start_loc=bounds, initial_state=True,
            activation="silu")
        return [*groups, g, beta, state]

    saved = state.clone()
    call()  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = call()
    for lengths, order in (([5, 1, 0, 9], [0, 1, 2, 3]), ([1, 12, 2, 0], [3, 1, 0, 2])):
        x.normal_()
        ba.normal_()
        bounds.copy_(torch.tensor([0, *lengths]).cumsum(0))
        slots.copy_(torch.tensor(order))
        state.copy_(saved)
        graph.replay()
        results = [one.clone() for one in replayed]
        state.copy_(saved)
        for got, expected in zip(results, call()):
            assert torch.equal(got, expected)
