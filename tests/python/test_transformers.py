"""Small models of transformers give the same greedy tokens with our convolution as with torch's."""

import copy
import functools
import json
import pathlib
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from grids import DEVICES  # noqa: E402

# Layers of the models of transformers_configs.py that fuse changes.
LAYERS = {"qwen3_next": 3, "qwen3_5": 3, "qwen3_5_moe": 3, "olmo_hybrid": 3, "kimi_linear": 3,
          "mamba2": 4, "falcon_h1": 4, "falcon_h1_norm": 4, "nemotron_h": 2, "bamba": 3,
          "granite": 3, "zamba2": 4, "lfm2": 3, "lfm2_moe": 3}
if not hasattr(transformers, "KimiLinearConfig"):  # before 5.17
    del LAYERS["kimi_linear"]


def run(program, *arguments):
    path = pathlib.Path(__file__).with_name(program)
    done = subprocess.run([sys.executable, path, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@functools.lru_cache
def fused(device):
    """The models before and after fuse, all from one run: to import transformers takes seconds."""
    return run("transformers_fused.py", device, *LAYERS)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model, layers", [("qwen3_next", 3), ("mamba2", 4), ("lfm2", 3)])
def test_greedy_tokens(model, layers, device):
    plain, ours = (run("transformers_model.py", model, device, mode)
                   for mode in ("torch", "install"))
    assert ours["tokens"] == plain["tokens"]
    assert len({tuple(row) for row in ours["tokens"]}) == 2
    # The prefill of each layer and every decode step called the installed functions.
    assert plain["calls"] == {}
    assert ours["calls"] == {"causal_conv1d_fn": layers, "causal_conv1d_update": 23 * layers}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", LAYERS)
def test_greedy_tokens_of_fused_layers(model, device):
    found = fused(device)[model]
    assert found["tokens"][-len(found["expected"]):] == found["expected"]
    assert len({tuple(row) for row in found["tokens"]}) == 3
    assert len({token for row in found["tokens"] for token in row[11:]}) > 3
    assert found["layers"] == LAYERS[model]
    # One call for each layer and step.
    function = "forward" if model.startswith("lfm2") else "forward_groups"
    assert found["calls"] == {function: 12 * LAYERS[model]}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", LAYERS)
def test_logits_and_states_of_fused_layers(model, device):
    found = fused(device)[model]
    checked = {**found["differences"], "bf16": found["bf16 differences"]}
    for case, differences in checked.items():
        noise = found["bf16 noise" if case == "bf16" else "noise"]
        for name, difference in differences.items():
            # The change of a weight is the same for all tokens, that of a rounding is not.
            assert difference <= 4 * noise[name], (case, name)
    # The first layer has the same inputs, which are its state.
    exact = [difference for differences in checked.values()
             for name, difference in differences.items() if name.startswith("conv state 0 ")]
    assert exact == [0] * (4 * (len(checked) - ("compiled" in checked)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", LAYERS)
def test_gradients_of_fused_layers(model, device):
    found = fused(device)[model]
    for case, differences in found["gradient differences"].items():
        assert any("conv" in name for name in differences)
        for name, difference in differences.items():
            assert difference <= 4 * found["gradient noise"][name], (case, name)
    # In autocast the layer is as near to fp32 as its own code, or within a rounding to bf16.
    for name, (own_error, error) in found["autocast errors"].items():
        assert error <= 2 * own_error + 2**-8, name
        assert own_error < 0.3, name  # otherwise the bound says little
    # One call for each layer and pass; states of a cache have gradients too.
    function = "short_conv" if model.startswith("lfm2") else "short_conv_groups"
    assert found["gradient calls"][function] == 2 * LAYERS[model]


def small_model():
    config = transformers.Qwen3_5TextConfig(
        hidden_size=32, vocab_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=48, head_dim=16, linear_num_key_heads=1,
        linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention"])
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_layers_get_their_own_code_back():
    from shortconv.compat.transformers import fuse, unfuse

    model = small_model()
    assert fuse(model) == 1 and fuse(model) == 1
    layer = model.model.layers[0].linear_attn
    assert "forward" in vars(layer)
    unfuse(model)
    assert "forward" not in vars(layer) and not hasattr(layer, "_shortconv_fused")


def test_calls_that_their_own_code_computes(monkeypatch):
    from shortconv import _groups
    from shortconv.compat.transformers import fuse

    model = small_model()
    layer = model.model.layers[0].linear_attn
    x, mask = torch.randn(2, 9, 32), torch.ones(2, 9, dtype=torch.int64)
    tokens = torch.randint(0, 64, (2, 9))
    numbers = torch.zeros(2, 9, dtype=torch.int32)

    def new_cache():
        return transformers.DynamicCache(config=model.config)

    caches = [new_cache() for _ in range(4)]
    with torch.no_grad():
        for cache in caches:
            layer(x, cache)

    def packed(*arguments):
        try:
            return layer(x, caches.pop(), *arguments, seq_idx=numbers)
        except ValueError as error:  # later versions refuse them without causal_conv1d
            return str(error)

    def outputs():
        cache = new_cache()
        cache.layers[0].activate_past_recording()
        with torch.no_grad():
            return [packed(), packed(mask), model(tokens, past_key_values=cache).logits,
                    cache.layers[0].conv_states[0]]

    expected = outputs()
    fuse(model)
    monkeypatch.setattr(_groups, "forward_groups", None)  # calling it fails
    for one, other in zip(outputs(), expected):
        assert one == other if isinstance(one, str) else torch.equal(one, other)
    with pytest.raises(TypeError), torch.no_grad():
        layer(x, None, mask)


def lfm2_layer():
    config = transformers.Lfm2Config(
        hidden_size=32, vocab_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=48, layer_types=["conv", "full_attention"])
    return transformers.AutoModelForCausalLM.from_config(config).model.layers[0].conv


def delta_net_layer():
    """With a rule that treats sequences separately, which that of torch does not do."""
    layer = small_model().model.layers[0].linear_attn
    rule = sys.modules[type(layer).__module__].torch_chunk_gated_delta_rule

    def packed_rule(q, k, v, g, beta, cu_seqlens=None, **options):
        if cu_seqlens is None:
            return rule(q, k, v, g=g, beta=beta, **options)
        lengths = cu_seqlens.diff().tolist()
        parts = zip(*(one.split(lengths, 1) for one in (q, k, v, g, beta)))
        return torch.cat([rule(*part[:3], g=part[3], beta=part[4], **options)[0]
                          for part in parts], 1), None

    layer.chunk_gated_delta_rule = packed_rule
    return layer


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("make, named", [
    (lfm2_layer, ["seq_idx"]), (delta_net_layer, ["cu_seq_lens_q"]),
    (delta_net_layer, ["cu_seq_lens_q", "seq_idx"])])
def test_packed_sequences(make, named, gradients):
    from shortconv.compat.transformers import fuse

    torch.manual_seed(2)
    layer, lengths = make(), [5, 1, 2, 4]
    for one in layer.parameters():
        one.data.normal_(std=0.5)
    assert fuse(layer) == 1
    x = torch.randn(1, sum(lengths), 32, requires_grad=gradients)
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    numbers = torch.repeat_interleave(torch.arange(4, dtype=torch.int32), torch.tensor(lengths))
    packed = {"cu_seq_lens_q": bounds, "seq_idx": numbers[None]}
    weights = torch.randn(1, sum(lengths), 32)

    def results(compute):
        layer.zero_grad()
        x.grad = None
        with torch.set_grad_enabled(gradients):
            out = compute()
        if not gradients:
            return [out]
        (out * weights).sum().backward()
        return [out, x.grad, *(one.grad for one in layer.parameters())]

    found = results(lambda: layer(x, **{name: packed[name] for name in named}))
    expected = results(lambda: torch.cat([layer(part) for part in x.split(lengths, 1)], 1))
    joined = results(lambda: layer(x))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], joined[0], rtol=1e-2)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("make", [lfm2_layer, delta_net_layer])
def test_packed_sequences_fill_a_new_cache(make, gradients):
    """With the last inputs, whichever sequence they belong to; transformers makes a cache unless
    use_cache=False is passed."""
    from shortconv.compat.transformers import fuse, unfuse

    layer = make()
    config = transformers.Lfm2Config if make is lfm2_layer else transformers.Qwen3_5TextConfig
    kinds = ["conv" if make is lfm2_layer else "linear_attention", "full_attention"]
    cache = [transformers.DynamicCache(config=config(
        num_hidden_layers=2, layer_types=kinds)) for _ in range(2)]
    x = torch.randn(1, 9, 32)
    numbers = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 2]], dtype=torch.int32)
    with torch.set_grad_enabled(gradients):
        layer(x, cache[0])
        fuse(layer)
        packed = layer(x, cache[1], seq_idx=numbers)
        without_cache = layer(x, seq_idx=numbers)
    own, ours = (one.layers[0].conv_states[0][..., 1:] for one in cache)
    torch.testing.assert_close(ours, own, rtol=0, atol=0)
    assert ours.requires_grad == own.requires_grad == gradients
    torch.testing.assert_close(packed, without_cache)
    with pytest.raises(ValueError, match="cu_seq_lens_q: divides the tokens of one row, but the"):
        layer(x.expand(2, -1, -1), cu_seq_lens_q=torch.tensor([0, 9], dtype=torch.int32))
    unfuse(layer)


def test_what_fused_code_cannot_compute_runs_the_own_code():
    from shortconv.compat.transformers import fuse

    model = small_model()
    layer = model.model.layers[0].linear_attn
    x = torch.randn(2, 5, 32)

    def exported():
        with torch.enable_grad():
            return torch.export.export(layer, (x,)).module()(x)

    def results():
        def loss(x):
            return layer(x).square().sum()

        _, tangent = torch.func.jvp(loss, (x,), (x,))
        found = [torch.func.grad(loss)(x), tangent, exported()]
        wide = copy.deepcopy(layer).double()
        y = x.double().requires_grad_()
        found += torch.autograd.grad(wide(y).square().sum(), y)
        return found

    expected = results()
    fuse(model)
    for one, other in zip(results(), expected):
        torch.testing.assert_close(one, other)


def test_gradients_from_a_cache_are_those_of_their_own_code():
    from shortconv.compat.transformers import fuse

    model = small_model()
    tokens = torch.randint(0, 64, (2, 12))

    def gradients():
        model.zero_grad()
        cache = transformers.DynamicCache(config=model.config)
        parts = [model(part, past_key_values=cache).logits for part in tokens.split([7, 5], 1)]
        torch.cat(parts, 1).square().mean().backward()
        return [one.grad.clone() for one in model.parameters()]

    try:
        expected = gradients()
    except RuntimeError as error:  # torch: a state that is needed was changed in place
        expected = str(error)
    fuse(model)
    if isinstance(expected, str):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients()
        return
    for one, other in zip(gradients(), expected):
        torch.testing.assert_close(one, other)


def test_unknown_layers_are_refused():
    from shortconv.compat.transformers import fuse

    model = small_model()
    layer = model.model.layers[0].linear_attn
    layer.activation = "gelu"
    with pytest.raises(NotImplementedError, match="DeltaNet: has the activation 'gelu'"):
        fuse(model)
    layer.activation = "silu"
    del layer.dt_bias
    with pytest.raises(NotImplementedError, match="Qwen3_5GatedDeltaNet: has no dt_bias"):
        fuse(model)
    model = small_model()
    layer = model.model.layers[0].linear_attn
    layer.num_v_heads = 3
    with pytest.raises(NotImplementedError, match="convolution of 64 channels; expected 80"):
        fuse(model)
    assert fuse(torch.nn.Linear(2, 2)) == 0
    assert "forward" not in vars(layer)


def test_copies_and_replaced_forwards():
    from shortconv.compat.transformers import fuse, unfuse

    model = small_model()
    layer = model.model.layers[0].linear_attn
    replaced = layer.forward = functools.partial(layer.forward)  # by hooks, for example
    fuse(model)
    tokens = torch.randint(0, 64, (2, 9))
    other = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(tokens).logits
        for parameter in other.model.layers[0].linear_attn.parameters():
            parameter.zero_()
        assert not torch.equal(other(tokens).logits, expected)  # it has its own weights
        assert torch.equal(model(tokens).logits, expected)
    unfuse(model)
    assert layer.forward is replaced
