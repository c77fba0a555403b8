"""The plug-in of vLLM on modules with the contracts of vLLM's: no vLLM is needed."""

import importlib
import logging
import sys
import types

import pytest

torch = pytest.importorskip("torch")

from grids import DEVICES  # noqa: E402
from shortconv.compat import vllm  # noqa: E402
from shortconv.compat.vllm import front  # noqa: E402
from vllm_stand_in import DELTA_NET_CODE, SHORT_CONV_CODE, add_engine  # noqa: E402

devices = pytest.mark.parametrize("device", DEVICES)
pytestmark = pytest.mark.usefixtures("seeded_and_without_hooks")


def functions_of(engine):
    """Everything that install() may replace."""
    return [engine.ops.causal_conv1d_fn, engine.ops.causal_conv1d_update,
            engine.metadata.compute_causal_conv1d_metadata, engine.delta_net.causal_conv1d_fn,
            engine.delta_net.fused_post_conv_prep, engine.short_conv.causal_conv1d_fn,
            engine.short_conv.ShortConv.forward_cuda]


def test_all_parts_are_installed_and_undone(monkeypatch):
    engine = add_engine(monkeypatch)
    before = functions_of(engine)
    finders = list(sys.meta_path)
    undo = vllm.install()
    assert engine.ops.causal_conv1d_fn is vllm.causal_conv1d_fn
    assert engine.ops.causal_conv1d_update is vllm.causal_conv1d_update
    assert engine.short_conv.causal_conv1d_fn is vllm.causal_conv1d_fn
    assert engine.delta_net.causal_conv1d_fn is front.deferred_conv1d_fn
    assert all(one is not other for one, other in zip(before, functions_of(engine)))
    again = vllm.install()
    again()
    assert engine.ops.causal_conv1d_fn is vllm.causal_conv1d_fn
    undo()
    assert functions_of(engine) == before and sys.meta_path == finders


@pytest.mark.parametrize("value, parts", [
    ("", ""), ("0", ""), ("1", "conv front gates metadata"), ("conv", "conv"),
    ("conv, front", "conv front"), ("metadata,conv", "conv metadata"), ("conv,gates", "conv gates")
])
def test_the_environment_variable_chooses_parts(monkeypatch, value, parts):
    engine = add_engine(monkeypatch)
    before = functions_of(engine)
    monkeypatch.setenv("SHORTCONV_VLLM", value)
    vllm.plugin()
    changed = [one is not other for one, other in zip(before, functions_of(engine))]
    conv, has_front = "conv" in parts, "front" in parts
    assert changed == [conv, conv, "metadata" in parts, conv, has_front, conv, "gates" in parts]
    if has_front:
        assert engine.delta_net.causal_conv1d_fn is front.deferred_conv1d_fn


def test_the_plugin_does_nothing_without_the_environment_variable(monkeypatch):
    engine = add_engine(monkeypatch)
    before = functions_of(engine)
    monkeypatch.delenv("SHORTCONV_VLLM", raising=False)
    vllm.plugin()
    assert functions_of(engine) == before


def with_another_parameter(conv_output, a, b, A_log, dt_bias, num_k_heads, head_k_dim, head_v_dim,
                           scale=1.0):
    pass


UNKNOWN = {
    "causal_conv1d_fn": lambda x, weight, bias, conv_states, query_start_loc, spam=None: None,
    "causal_conv1d_update": lambda x, conv_state, bias, weight: None,
    "compute_causal_conv1d_metadata": lambda query_start_loc_p_cpu, *, device, eggs: None,
    "fused_post_conv_prep": with_another_parameter,
    "short_conv_code": SHORT_CONV_CODE.replace("output):", "output, gate=None):"),
}
MESSAGES = {
    "causal_conv1d_fn": "causal_conv1d_fn of vllm 0.99.0: has the parameters spam, which shortc",
    "causal_conv1d_update": r"begins with \(x, conv_state, bias, weight\); expected \(x, conv_state"
                            ", weight, bias, activation",
    "compute_causal_conv1d_metadata": "has the parameters eggs",
    "fused_post_conv_prep": "fused_post_conv_prep of vllm 0.99.0: has the parameters scale",
    "short_conv_code": "ShortConv.forward_cuda of vllm 0.99.0: has the parameters self, hidden_sta",
}


@pytest.mark.parametrize("name", list(UNKNOWN))
def test_unknown_signatures_are_refused_and_nothing_is_replaced(monkeypatch, caplog, name):
    engine = add_engine(monkeypatch, **{name: UNKNOWN[name]})
    before, finders = functions_of(engine), list(sys.meta_path)
    with pytest.raises(ImportError, match=MESSAGES[name]):
        vllm.install()
    monkeypatch.setenv("SHORTCONV_VLLM", "1")
    with caplog.at_level(logging.WARNING):
        vllm.plugin()  # does not raise
    assert "shortconv is not used" in caplog.text and "0.99.0" in caplog.text
    assert functions_of(engine) == before and sys.meta_path == finders


def test_missing_functions_and_modules_are_named(monkeypatch):
    engine = add_engine(monkeypatch)
    del engine.ops.causal_conv1d_update
    with pytest.raises(ImportError, match="vllm 0.99.0: has no causal_conv1d_update in vllm.model"):
        vllm.install()
    monkeypatch.setitem(sys.modules, engine.ops.__name__, None)
    with pytest.raises(ImportError, match="vllm 0.99.0: has no module vllm.model_exec.*with ca"):
        vllm.install()


@pytest.mark.parametrize("code, message", [
    (SHORT_CONV_CODE.replace("self.kv_cache", "self.caches"), "does not use kv_cache of .*caches"),
    (SHORT_CONV_CODE.replace("after * (", "self.scale * after * ("), "nothing of .*uses scale"),
])
def test_an_unknown_short_conv_is_refused(monkeypatch, code, message):
    engine = add_engine(monkeypatch, short_conv_code=code)
    with pytest.raises(ImportError, match=message):
        vllm.install()
    vllm.install(["conv", "front", "metadata"])()
    assert engine.ops.causal_conv1d_fn is not vllm.causal_conv1d_fn


@pytest.mark.parametrize("parts", [[], ["front"], ["conv", "back"]])
def test_unknown_parts_are_refused(monkeypatch, caplog, parts):
    add_engine(monkeypatch)
    with pytest.raises(ValueError, match="^parts: are .*; expected conv, and any of front, gates"):
        vllm.install(parts)
    monkeypatch.setenv("SHORTCONV_VLLM", ",".join(parts) or "x")
    vllm.plugin()
    assert "expected conv" in caplog.text


def test_metadata_are_not_computed(monkeypatch):
    engine = add_engine(monkeypatch)
    undo = vllm.install()
    compute = engine.metadata.compute_causal_conv1d_metadata
    assert compute(torch.tensor([0, 5]), device="nowhere") == (None, None, None)
    undo()
    engine.metadata.compute_causal_conv1d_metadata(torch.tensor([0, 5]), device="nowhere")
    assert engine.calls == ["compute_causal_conv1d_metadata"]


LATER = "vllm.model_executor.layers.mamba.gdn_linear_attn"


@pytest.mark.parametrize("is_known", [True, False])
def test_layers_that_are_imported_later_are_changed(monkeypatch, caplog, tmp_path, is_known):
    engine = add_engine(monkeypatch)
    original = engine.ops.causal_conv1d_fn
    parameters = "conv_output, a, b, A_log, dt_bias, num_k_heads, head_k_dim, head_v_dim"
    (tmp_path / "gdn_linear_attn.py").write_text(
        f"from {engine.ops.__name__} import causal_conv1d_fn\n"
        f"def fused_post_conv_prep({parameters}{'' if is_known else ', spam'}): pass\n")
    monkeypatch.setattr(sys.modules["vllm.model_executor.layers.mamba"], "__path__",
                        [str(tmp_path)])
    monkeypatch.setitem(sys.modules, LATER, None)  # removed after the test
    del sys.modules[LATER]
    undo = vllm.install()
    module = importlib.import_module(LATER)
    assert (module.causal_conv1d_fn is front.deferred_conv1d_fn) == is_known
    assert ("has the parameters spam" in caplog.text) != is_known
    assert type(module.__loader__).__module__.startswith("_frozen")  # for linecache and inspect
    undo()
    assert module.causal_conv1d_fn is original


def batch_of(device, lengths, decodes, is_split=True, resumed=None):
    """The metadata of a batch in which the first `decodes` sequences are decodes."""
    bounds = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().to(device)
    count = sum(lengths[:decodes])
    if resumed is None:
        resumed = [s < decodes or s % 2 == 0 for s in range(len(lengths))]
    return types.SimpleNamespace(
        query_start_loc=bounds, slots=(torch.randperm(15)[: len(lengths)] + 1).int().to(device),
        has_initial_state=torch.tensor(resumed, device=device), num_decodes=decodes,
        num_decode_tokens=count, is_split=is_split and decodes > 0,
        prefill_query_start_loc=bounds[decodes:] - count)


class Net:
    """A gated delta net with random weights, a pool of states and rows of a batch."""

    def __init__(self, device, dtype, tokens, weight_dtype=None, layout="SD"):
        self.k_heads, self.k_dim, v_heads, self.v_dim = 2, 32, 4, 16
        dim = 2 * self.k_heads * self.k_dim + v_heads * self.v_dim
        make = lambda *shape: torch.randn(*shape, device=device).to(dtype)  # noqa: E731
        self.weight, self.bias = make(dim, 4).to(weight_dtype or dtype), None
        self.a_log, self.dt_bias = torch.rand(v_heads, device=device), make(v_heads)
        self.x, self.a, self.b = make(tokens, dim), make(tokens, v_heads), make(tokens, v_heads)
        self.pool = make(16, 3, dim).transpose(1, 2) if layout == "SD" else make(16, dim, 3)

    def run(self, engine, batch, **options):
        """Results of the layer, and the states after it."""
        state = self.pool.clone()
        results = engine.delta_net.run(self, self.x, self.a, self.b, state, batch, **options)
        return (*results, state)


def assert_same(results, expected):
    assert len(results) == len(expected)
    for one, other in zip(results, expected):
        assert one.dtype == other.dtype and torch.equal(one, other)


BATCHES = {"prompts": ([7, 1, 12, 3], 0), "mixed": ([1, 1, 1, 9, 1, 14], 3),
           "one prompt": ([20], 0), "short prompt": ([1, 2], 1), "empty prompt": ([1, 0, 5], 1)}


@devices
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["SD", "DS"])
@pytest.mark.parametrize("is_split", [True, False])
@pytest.mark.parametrize("name", list(BATCHES))
def test_the_front_is_one_call(monkeypatch, device, dtype, layout, is_split, name):
    engine = add_engine(monkeypatch)
    lengths, decodes = BATCHES[name]
    net = Net(device, dtype, sum(lengths), layout=layout)
    batch = batch_of(device, lengths, decodes, is_split)
    expected = net.run(engine, batch)
    assert engine.calls == ["causal_conv1d_fn", "fused_post_conv_prep"]
    vllm.install(["conv", "front"])
    calls = []
    fused, plain = front.prepare_rows, front.causal_conv1d_fn
    monkeypatch.setattr(front, "prepare_rows",
                        lambda *a, **n: (calls.append("fused"), fused(*a, **n))[1])
    monkeypatch.setattr(front, "causal_conv1d_fn",
                        lambda *a, **n: (calls.append("conv"), plain(*a, **n))[1])
    assert_same(net.run(engine, batch), expected)
    assert calls == (["fused", "conv"] if batch.is_split else ["fused"])
    assert len(engine.calls) == 2  # as before: those of the first run


@devices
def test_decodes_may_be_used_before_the_prompts(monkeypatch, device):
    engine = add_engine(monkeypatch)
    net, batch = Net(device, torch.bfloat16, 26), batch_of(device, [1, 1, 11, 13], 2)
    expected = net.run(engine, batch)
    first = DELTA_NET_CODE.replace("    prepared =", "    used = use(rows[:count])\n    prepared =")
    exec(first.replace("use(rows[:count]))", "used)"), vars(engine.delta_net))
    vllm.install()
    assert_same(net.run(engine, batch), expected)
    assert len(engine.calls) == 2


def used_in_all_ways(rows):
    """Each use computes the rows, and all see the same values."""
    plain = rows.clone()
    assert type(plain) is torch.Tensor and type(rows) is front.DeferredRows
    assert rows.shape == plain.shape and rows.dtype == plain.dtype and len(rows) == len(plain)
    ways = [torch.cat([rows, rows])[: len(plain)], torch.add(rows, 0), rows + 0, 0 + rows, rows * 1,
            torch.ones_like(plain) * rows, rows.view(plain.shape), rows[:, :], rows.T.T,
            rows.transpose(0, 1).contiguous().T, rows.transpose(-1, -2).transpose(0, 1)[0:].clone(),
            torch.stack(list(rows)), torch.cat(torch.split(rows, 64, dim=1), 1), -(rows * -1)]
    for one in ways:
        assert torch.equal(one, plain)
    assert rows.data_ptr() == rows.data_ptr() and torch.equal(rows[1:3].computed(), plain[1:3])
    return plain


@devices
@pytest.mark.parametrize("is_split", [True, False])
@pytest.mark.parametrize("has_bounds", [True, False])
def test_other_uses_compute_the_convolution(monkeypatch, device, is_split, has_bounds):
    """All rows are read before they are prepared, then the functions run one by one."""
    engine = add_engine(monkeypatch)
    net, batch = Net(device, torch.bfloat16, 26), batch_of(device, [1, 1, 11, 13], 2, is_split)
    if not has_bounds:
        batch.prefill_query_start_loc = None
    expected = net.run(engine, batch)
    first = DELTA_NET_CODE.replace("    count =", "    look(rows)\n    count =")
    exec(first, vars(engine.delta_net))
    engine.delta_net.look = used_in_all_ways
    vllm.install()
    assert_same(net.run(engine, batch), expected)
    assert engine.calls == ["causal_conv1d_fn", "fused_post_conv_prep", "fused_post_conv_prep"]


@devices
def test_without_bounds_of_the_prompts_the_functions_run_one_by_one(monkeypatch, device):
    engine = add_engine(monkeypatch)
    net, batch = Net(device, torch.bfloat16, 26), batch_of(device, [1, 1, 11, 13], 2)
    batch.prefill_query_start_loc = None
    expected = net.run(engine, batch)
    vllm.install()
    assert_same(net.run(engine, batch), expected)
    assert engine.calls.count("fused_post_conv_prep") == 2


@devices
def test_rows_cannot_be_read_after_they_are_prepared(monkeypatch, device):
    engine = add_engine(monkeypatch)
    net, batch = Net(device, torch.bfloat16, 9), batch_of(device, [4, 5], 0)
    exec(DELTA_NET_CODE.replace("rows[:count]", "rows"), vars(engine.delta_net))
    net.run(engine, batch)
    vllm.install()
    with pytest.raises(RuntimeError, match="^causal_conv1d_fn: rows of its result are read after"):
        net.run(engine, batch)


@devices
def test_calls_that_are_not_deferred(monkeypatch, device):
    net, batch = Net(device, torch.bfloat16, 9), batch_of(device, [4, 5], 0)
    table = batch.slots[:, None].expand(2, 3).contiguous()
    zeros = torch.zeros(2, dtype=torch.int32, device=device)

    def call(slots=batch.slots, **others):
        return front.deferred_conv1d_fn(
            net.x.T, net.weight, None, net.pool.clone(), batch.query_start_loc, slots,
            batch.has_initial_state, **others)

    plain = call().computed()
    blocks = {"block_idx_last_scheduled_token": zeros, "initial_state_idx": zeros}
    for others in ({"slots": table}, {"slots": table, **blocks}):
        assert type(call(**others)) is torch.Tensor
        assert torch.equal(call(**others), plain)
    with pytest.raises(NotImplementedError, match="^activation: is 'relu'"):
        call(activation="relu")


def short_conv_of(engine, device, dtype, decodes, lengths, layout):
    """A layer of the stand-in, its metadata and its input, whose last row is padding."""
    dim, tokens = 64, decodes + sum(lengths)
    make = lambda *shape: torch.randn(*shape, device=device).to(dtype)  # noqa: E731
    slots = (torch.randperm(15) + 1).int().to(device)
    bounds = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().to(device)
    pool = make(16, 2, dim) if layout == "SD" else make(16, dim, 2)
    metadata = types.SimpleNamespace(
        num_decode_tokens=decodes, num_prefill_tokens=sum(lengths), num_prefills=len(lengths),
        state_indices_tensor_d=slots[:decodes, None],
        state_indices_tensor_p=slots[decodes: decodes + len(lengths)],
        has_initial_states_p=torch.arange(len(lengths), device=device) % 2 == 0,
        query_start_loc_p=bounds if lengths else None, num_accepted_tokens=None)
    into, out_of = make(dim, 3 * dim) / 8, make(dim, dim) / 8
    layer = engine.short_conv.ShortConv()
    layer.prefix, layer.kv_cache = "layers.0", (pool,)
    layer.in_proj, layer.out_proj = (lambda x: (x @ into, None)), (lambda x: (x @ out_of, None))
    layer.conv = types.SimpleNamespace(weight=make(dim, 1, 3), bias=make(dim))
    engine.short_conv.is_conv_state_dim_first = lambda: layout == "DS"
    context = types.SimpleNamespace(attn_metadata={layer.prefix: metadata})
    engine.short_conv.get_forward_context = lambda: context
    return layer, metadata, context, make(tokens + 1, dim)


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["SD", "DS"])
@pytest.mark.parametrize("decodes, lengths", [(0, [7, 1, 5]), (3, []), (2, [6, 3])])
def test_short_conv_with_its_products(monkeypatch, device, dtype, layout, decodes, lengths):
    engine = add_engine(monkeypatch)
    layer, _, _, hidden = short_conv_of(engine, device, dtype, decodes, lengths, layout)
    pool, results = layer.kv_cache[0].clone(), []
    for change in (lambda: None, vllm.install):
        change()
        layer.kv_cache[0].copy_(pool)
        out = torch.full_like(hidden, 7)
        layer.forward_cuda(hidden, out)
        results.append((out, layer.kv_cache[0].clone()))
    (out, state), (ours, our_state) = results
    assert torch.equal(our_state, state) and (ours[-1] == 7).all()
    # One rounding less: the result of the convolution is not rounded before the product.
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    torch.testing.assert_close(ours, out, **close)
    assert len(engine.calls) == bool(decodes) + bool(lengths)  # none after install()


@devices
def test_short_conv_leaves_drafts_and_profiling_to_the_layer(monkeypatch, device):
    engine = add_engine(monkeypatch)
    layer, metadata, context, hidden = short_conv_of(engine, device, torch.float32, 3, [], "SD")
    vllm.install(["conv", "gates"])
    used = []
    monkeypatch.setattr(engine.short_conv, "causal_conv1d_update",
                        lambda *a, **n: (used.append(1), vllm.causal_conv1d_update(*a, **n))[1])
    layer.forward_cuda(hidden, torch.empty_like(hidden))
    assert used == []
    metadata.num_accepted_tokens = torch.ones(3, dtype=torch.int32, device=device)
    layer.forward_cuda(hidden, torch.empty_like(hidden))
    assert used == [1]
    context.attn_metadata = None
    layer.forward_cuda(hidden, torch.empty_like(hidden))
    assert used == [1]
