"""The plug-in of SGLang computes what SGLang does: its front in one launch, snapshots, drafts and
decodes as before. On modules with the contracts of SGLang's: no SGLang is needed.
"""

import types

import pytest

torch = pytest.importorskip("torch")

from grids import DEVICES  # noqa: E402
from sglang_stand_in import add_engine  # noqa: E402
from shortconv.compat import sglang  # noqa: E402
from shortconv.compat.sglang import dispatcher, front, triton  # noqa: E402

devices = pytest.mark.parametrize("device", DEVICES)
pytestmark = pytest.mark.usefixtures("seeded_and_without_hooks")


def batch_of(device, lengths, resumed, padding=0):
    """A batch of prompts; `padding` more sequences without tokens have no slot."""
    bounds = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, padding))
    bounds[len(lengths) + 1:] = sum(lengths)
    slots = torch.randperm(15)[: len(lengths)].tolist() + [-1] * padding
    return types.SimpleNamespace(
        bounds=bounds.int().to(device), lengths=lengths, tracked=None,
        slots=torch.tensor(slots, dtype=torch.int32, device=device),
        resumed=torch.tensor(resumed + [False] * padding, device=device))


class Net:
    """A gated delta net with random weights, a pool of states and rows of a batch."""

    def __init__(self, device, dtype, tokens):
        self.k_heads, self.k_dim, self.v_heads, self.v_dim = 2, 32, 4, 16
        dim = 2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim
        make = lambda *shape: torch.randn(*shape, device=device).to(dtype)  # noqa: E731
        self.weight, self.bias = make(dim, 4), None
        self.a_log = torch.rand(self.v_heads, device=device)
        self.dt_bias = make(self.v_heads)
        self.x = make(tokens, dim)
        gates = make(tokens, 2 * self.v_heads)  # a and b are columns of one array
        self.a, self.b = gates[:, : self.v_heads], gates[:, self.v_heads:]
        self.pool = make(16, dim, 3)

    def run(self, engine, batch, **options):
        """Results of the layer, and the states after it."""
        states = self.pool.clone()
        results = engine.backend.extend(self, self.x, self.a, self.b, states, batch, **options)
        return (*results, states)


def assert_same(results, expected):
    assert len(results) == len(expected)
    for one, other in zip(results, expected):
        assert one.dtype == other.dtype and torch.equal(one, other)


def counted(monkeypatch):
    """The names of our functions that launch, as the front calls them."""
    calls = []

    def count(name, function):
        return lambda *a, **n: (calls.append(name), function(*a, **n))[1]

    monkeypatch.setattr(front, "convolve_groups", count("groups", front.convolve_groups))
    for one in (dispatcher, triton):
        monkeypatch.setattr(one.conv, "run", count("conv", one.conv.run))
    return calls


BATCHES = {"prompts": ([7, 1, 12, 3], [False, True, True, False], 0),
           "one prompt": ([20], [False], 0), "empty prompt": ([1, 0, 5], [True, True, False], 0),
           "padding": ([4, 9], [True, False], 2)}


@devices
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("has_split", [True, False])
@pytest.mark.parametrize("name", list(BATCHES))
def test_the_front_is_one_call(monkeypatch, device, dtype, has_split, name):
    engine = add_engine(monkeypatch, has_split=has_split)
    lengths, resumed, padding = BATCHES[name]
    net, batch = Net(device, dtype, sum(lengths)), batch_of(device, lengths, resumed, padding)
    expected = net.run(engine, batch)
    assert engine.calls == [
        "causal_conv1d_fn", *["fused_qkv_split_gdn_prefill"] * has_split, "fused_gdn_gating",
        "chunk_gated_delta_rule", "l2norm"]
    sglang.install()
    engine.calls.clear()
    launched = counted(monkeypatch)
    assert_same(net.run(engine, batch), expected)
    assert launched == ["groups"] and engine.calls == ["chunk_gated_delta_rule"]


@devices
def test_rows_after_the_last_prompt_are_padding(monkeypatch, device):
    """A captured prefill has more rows than the batch has tokens."""
    engine = add_engine(monkeypatch)
    net, batch = Net(device, torch.bfloat16, 24), batch_of(device, [7, 9], [True, False], 1)
    expected = net.run(engine, batch)
    sglang.install()
    results = net.run(engine, batch)
    assert torch.equal(results[-1], expected[-1])
    assert_same([one[:, :16] for one in results[:-1]], [one[:, :16] for one in expected[:-1]])


@devices
@pytest.mark.parametrize("has_split", [True, False])
def test_other_kernels_normalize_themselves(monkeypatch, device, has_split):
    engine = add_engine(monkeypatch, has_split=has_split)
    net, batch = Net(device, torch.bfloat16, 16), batch_of(device, [7, 9], [True, False])
    kernel = engine.backend.OtherKernel
    expected = net.run(engine, batch, kernel=kernel)
    sglang.install()
    engine.calls.clear()
    launched = counted(monkeypatch)
    assert_same(net.run(engine, batch, kernel=kernel), expected)
    assert launched == ["groups"] and engine.calls == []


@devices
def test_the_kernel_of_an_unknown_module_gets_tensors(monkeypatch, device):
    """The delta rule is imported with unknown parameters, after install()."""
    engine = add_engine(monkeypatch)
    net, batch = Net(device, torch.bfloat16, 16), batch_of(device, [7, 9], [True, False])
    expected = net.run(engine, batch)
    rule = engine.delta_rule.chunk_gated_delta_rule
    sglang.install()
    engine.delta_rule.chunk_gated_delta_rule = rule
    engine.calls.clear()
    launched = counted(monkeypatch)
    assert_same(net.run(engine, batch), expected)
    assert launched == ["groups"] and engine.calls == ["chunk_gated_delta_rule", "l2norm"]


@devices
def test_other_gates_stay_as_they_are(monkeypatch, device):
    """A layer of another kind computes its gates itself."""
    engine = add_engine(monkeypatch)
    net, batch = Net(device, torch.bfloat16, 16), batch_of(device, [7, 9], [True, False])

    def gates(a_log, a, b, dt_bias):
        return a.float()[None] * a_log, b.float().sigmoid()[None]

    expected = net.run(engine, batch, gates=gates)
    sglang.install()
    launched = counted(monkeypatch)
    assert_same(net.run(engine, batch, gates=gates), expected)
    assert launched == ["groups"]


@devices
def test_gates_of_other_rows_are_computed_apart(monkeypatch, device):
    engine = add_engine(monkeypatch)
    net, batch = Net(device, torch.bfloat16, 16), batch_of(device, [7, 9], [True, False])
    arguments = (net.a_log, net.a[:9], net.b[:9], net.dt_bias)
    expected = net.run(engine, batch, gates=lambda *_: engine.backend.fused_gdn_gating(*arguments))
    sglang.install()
    launched = counted(monkeypatch)
    assert_same(net.run(engine, batch, gates=lambda *_: engine.backend.fused_gdn_gating(
        *arguments)), expected)
    assert launched == ["groups"] and engine.calls.count("fused_gdn_gating") == 2


@devices
def test_gates_with_other_constants_are_computed_at_once(monkeypatch, device):
    engine = add_engine(monkeypatch)
    net = Net(device, torch.bfloat16, 16)
    sglang.install()
    gating = engine.backend.fused_gdn_gating
    arguments = (net.a_log, net.a, net.b, net.dt_bias)
    assert type(gating(*arguments)[0]) is front.DeferredGate and engine.calls == []
    for others in ({"beta": 2.0}, {"threshold": 10.0}):
        assert type(gating(*arguments, **others)[0]) is torch.Tensor
    g, beta = gating(*arguments)
    assert g.shape == beta.shape == (1, 16, 4) and engine.calls == ["fused_gdn_gating"] * 2
    assert g.dtype == beta.dtype == torch.float32  # computes both
    assert engine.calls == ["fused_gdn_gating"] * 3


def used_in_all_ways(rows):
    """Each use computes the rows, and all see the same values."""
    plain = rows.clone()
    assert type(plain) is torch.Tensor and type(rows) is front.DeferredRows
    assert rows.shape == plain.shape and rows.dtype == plain.dtype and len(rows) == len(plain)
    q, k, v = torch.split(rows, [64, 64, 64], dim=-1)
    assert type(q) is front.DeferredPart and q.shape == (len(plain), 64)
    ways = [torch.cat([rows, rows])[: len(plain)], rows + 0, torch.ones_like(plain) * rows,
            rows[:], rows[0:, :], rows.T.T, rows.transpose(0, 1).contiguous().T,
            rows.transpose(-1, -2).transpose(0, 1), torch.cat(torch.split(rows, 64, dim=1), 1),
            torch.cat(torch.split(rows, [100, 92], dim=1), 1), torch.cat([q, k, v], 1),
            torch.cat([q.view(len(plain), 64), k + 0, v[:]], 1), torch.stack(list(rows))]
    for one in ways:
        assert torch.equal(torch.as_tensor(one + 0), plain)
    heads = v.view(1, len(plain), 4, 16)
    assert type(heads) is front.DeferredPart and heads.shape == (1, len(plain), 4, 16)
    assert torch.equal(heads.computed().flatten(2)[0], plain[:, 128:])
    assert torch.equal(rows.transpose(1, 1), plain)


@devices
@pytest.mark.parametrize("has_split", [True, False])
def test_other_uses_compute_the_convolution(monkeypatch, device, has_split):
    """All rows are read before they are split, then the functions run one by one."""
    engine = add_engine(monkeypatch, has_split=has_split)
    net, batch = Net(device, torch.bfloat16, 16), batch_of(device, [7, 9], [True, False])
    expected = net.run(engine, batch)
    sglang.install()
    engine.calls.clear()
    assert_same(net.run(engine, batch, look=used_in_all_ways), expected)
    assert engine.calls == ["fused_gdn_gating", "chunk_gated_delta_rule", "l2norm"]


@devices
def test_rows_cannot_be_read_after_the_delta_rule(monkeypatch, device):
    engine = add_engine(monkeypatch)
    net, batch = Net(device, torch.bfloat16, 9), batch_of(device, [4, 5], [True, False])
    kept = []
    sglang.install()
    net.run(engine, batch, look=kept.append)
    with pytest.raises(RuntimeError, match="^causal_conv1d_fn: its result is read after the delta"):
        kept[0].clone()


@devices
def test_rows_can_be_read_after_other_kernels(monkeypatch, device):
    engine = add_engine(monkeypatch)
    net, batch = Net(device, torch.bfloat16, 9), batch_of(device, [4, 5], [True, False])
    kept = []
    sglang.install()
    states = net.run(engine, batch, look=kept.append, kernel=engine.backend.OtherKernel)[-1]
    expected = dispatcher.causal_conv1d_fn(
        net.x.T, net.weight, None, batch.bounds, batch.slots, batch.resumed, net.pool, "silu").T
    assert torch.equal(kept[0].computed(), expected) and torch.equal(states, net.pool)


@devices
def test_calls_that_are_not_deferred(monkeypatch, device):
    engine = add_engine(monkeypatch)
    sglang.install()
    net, batch = Net(device, torch.bfloat16, 9), batch_of(device, [4, 5], [True, False])
    conv = engine.backend.causal_conv1d_fn
    named = {"conv_states": net.pool, "cache_indices": batch.slots,
             "has_initial_state": batch.resumed}
    assert type(conv(net.x.T, net.weight, None, query_start_loc=batch.bounds,
                     **named)) is front.DeferredRows
    with torch.enable_grad():
        weight = net.weight.clone().requires_grad_()
        assert type(conv(net.x.T, weight, None, query_start_loc=batch.bounds,
                         **named)) is torch.Tensor
    assert type(conv(net.x.T, net.weight, None, batch.bounds, **named)) is torch.Tensor
    assert type(conv(net.x.T[None], net.weight)) is torch.Tensor
    assert conv(net.x.T[:, :0], net.weight, query_start_loc=torch.zeros_like(batch.bounds),
                **named).shape == (192, 0)
    with pytest.raises(TypeError, match="^spam: is not a known argument"):
        conv(net.x.T, net.weight, None, query_start_loc=batch.bounds, spam=1)
    with pytest.raises(NotImplementedError, match="^activation: is 'relu'"):
        conv(net.x.T, net.weight, None, query_start_loc=batch.bounds, activation="relu")
    rows = conv(net.x.T, net.weight, None, query_start_loc=batch.bounds,
                **{**named, "conv_states": net.pool[:, :100]})
    with pytest.raises(ValueError, match="^conv_states: "):
        engine.backend.fused_qkv_split_gdn_prefill(rows.T, 2, 2, 4, 32, 32, 16)[0].clone()


@devices
def test_snapshots_of_the_prefix_cache(monkeypatch, device):
    """The backend copies inputs to slots of its own before the convolution; later a request resumes
    from one of them."""
    engine = add_engine(monkeypatch)
    net, first = Net(device, torch.bfloat16, 16), batch_of(device, [7, 9], [False, True])
    used = set(first.slots.tolist())
    free = torch.tensor([one for one in range(16) if one not in used][:2], device=device)
    rows = torch.tensor([[1, 2, 3], [12, 13, 14]], device=device)
    first.tracked = (rows, free)
    second = batch_of(device, [16], [True])
    second.slots = free[1:].int()
    results = []
    for change in (lambda: None, sglang.install):
        change()
        states = net.run(engine, first)[-1]
        assert torch.equal(states[free], net.x[rows].transpose(1, 2))
        later = engine.backend.extend(net, net.x, net.a, net.b, states, second)
        results.append((states, *later))
    assert_same(results[1], results[0])


@devices
@pytest.mark.parametrize("is_tree", [False, True])
def test_draft_tokens(monkeypatch, device, is_tree):
    engine = add_engine(monkeypatch)
    net = Net(device, torch.bfloat16, 6)
    slots = torch.tensor([5, -1], dtype=torch.int32, device=device)
    results = []
    for change in (lambda: None, sglang.install):
        change()
        states, windows = net.pool.clone(), torch.zeros(2, 3, 192, 3, device=device).bfloat16()
        tree = {}
        if is_tree:
            links = torch.tensor([[1, -1, -1]] * 2), torch.tensor([[-1, 2, -1]] * 2)
            tree = {"retrieve_next_token": links[0].to(device),
                    "retrieve_next_sibling": links[1].to(device),
                    "retrieve_parent_token": torch.full((2, 3), 7, device=device)}
        out = engine.backend.verify(net, net.x, states, slots, windows, **tree)
        assert type(out) is torch.Tensor
        results.append((out, states, windows, *tree.values()))
    assert_same(results[1], results[0])
    assert engine.calls == ["causal_conv1d_update_triton"]  # before install()


@devices
def test_decodes(monkeypatch, device):
    engine = add_engine(monkeypatch)
    net = Net(device, torch.bfloat16, 5)
    slots = torch.tensor([5, -1, 3, 9, 0], dtype=torch.int32, device=device)
    results = []
    for change in (lambda: None, sglang.install):
        change()
        states, other = net.pool.clone(), net.pool.clone()
        results.append((
            engine.backend.causal_conv1d_update(net.x, states, net.weight, None, "silu",
                                                conv_state_indices=slots), states,
            engine.model.causal_conv1d_update(net.x.clone(), other, net.weight, None,
                                              activation=None, conv_state_indices=slots), other))
    assert_same(results[1], results[0])
    assert engine.calls == ["causal_conv1d_update_triton", "causal_conv1d_update"]
