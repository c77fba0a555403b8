"""transformers_fused.py DEVICE MODEL...: small random models before and after fuse, as JSON.

A separate program, because transformers looks for fla, causal_conv1d and mamba_ssm when it is
imported: here all operators but ours are those of torch.
"""

import copy
import functools
import json
import sys

sys.modules["fla"] = sys.modules["causal_conv1d"] = sys.modules["mamba_ssm"] = None

import torch  # noqa: E402
import transformers  # noqa: E402
from call_counts import calls, counted  # noqa: E402
from shortconv import _groups  # noqa: E402
from shortconv.compat import transformers as compat  # noqa: E402
from transformers_configs import SMALL, model_of  # noqa: E402

COMPILED = ("qwen3_next", "qwen3_5", "kimi_linear", "mamba2", "lfm2")  # one of each kind
COMPILED_TRAINING = ("qwen3_5", "mamba2", "lfm2")  # experts do not compile with gradients
_groups.forward_groups = counted(_groups.forward_groups)
for name in ("convolve", "short_conv", "short_conv_groups"):
    setattr(compat, name, counted(getattr(compat, name)))


def outputs(model, tokens, mask, change=lambda model: None):
    """Logits of a prompt of 11 tokens, a chunk of 5 and 2 steps, and the states after each.

    change: called after the prompt.
    """
    cache = transformers.DynamicCache(config=model.config)
    name = "cache_params" if model.config.model_type == "mamba2" else "past_key_values"
    found = {}
    for begin, end in ((0, 11), (11, 16), (16, 17), (17, 18)):
        found[f"logits {end}"] = model(
            tokens[:, begin:end], attention_mask=mask[:, :end], use_cache=True,
            **{name: cache}).logits.float()
        for index, layer in enumerate(cache.layers):
            # The oldest input that a cache keeps is not part of the history.
            for kind, first in (("conv", 1), ("recurrent", 0)):
                state = getattr(layer, f"{kind}_states", {}).get(0)
                if state is not None:
                    found[f"{kind} state {index} {end}"] = state[..., first:].float().clone()
        if begin == 0:
            change(model)
    return found


def gradients(model, tokens, mask, cached=False, compiled=None):
    """The gradients of all parameters.

    cached: of a call that fills a cache, and of its states.
    compiled: the model, compiled; None: the model itself.
    """
    model.zero_grad()
    options = {"use_cache": False}
    if cached:
        cache = transformers.DynamicCache(config=model.config)
        name = "cache_params" if model.config.model_type == "mamba2" else "past_key_values"
        options = {"use_cache": True, name: cache}
    with torch.enable_grad():
        call = model if compiled is None else compiled
        logits = call(tokens, attention_mask=mask, **options).logits.float()
        loss = logits.log_softmax(-1).square().mean()
        if cached:  # states keep their gradients
            loss = loss + sum(
                layer.conv_states[0][..., 1:].float().square().mean()
                for layer in cache.layers if getattr(layer, "conv_states", {}).get(0) is not None)
        loss.backward()
    return {name: one.grad.float() for name, one in model.named_parameters()
            if one.grad is not None}


def autocast_errors(model, features):
    """Errors of the gradients of a layer in autocast against fp32, by its own code and fused: the
    mean square of eight random inputs, because few elements (dt_bias) vary."""
    compat.fuse(model)
    layer = next(one for one in model.modules() if hasattr(one, "_shortconv_fused"))
    device = next(layer.parameters()).device

    def layer_gradients(x, weights, enabled):
        layer.zero_grad()
        x = x.clone().requires_grad_()
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            out = layer(x)
            ((out[0] if isinstance(out, tuple) else out).float() * weights).sum().backward()
        return {"x": x.grad, **{name: one.grad.clone() for name, one in layer.named_parameters()
                                if one.grad is not None}}

    found, repeats = {}, 8
    for _ in range(repeats):
        x, weights = (torch.randn(2, 24, features, device=device) for _ in range(2))
        compat.unfuse(layer)
        exact, own = (layer_gradients(x, weights, enabled) for enabled in (False, True))
        compat.fuse(layer)
        fused = layer_gradients(x, weights, True)
        for name, one in exact.items():
            squares = [float((of[name] - one).norm() / one.norm()) ** 2 for of in (own, fused)]
            found[name] = [sum(pair) for pair in zip(found.get(name, (0, 0)), squares)]
    compat.unfuse(model)
    return {name: [(one / repeats) ** 0.5 for one in sums] for name, sums in found.items()}


def difference(one, other):
    """The largest of each tensor, in parts of the largest value."""
    assert one.keys() == other.keys()
    return {name: float((one[name] - other[name]).abs().max() / other[name].abs().max())
            for name in one}


def perturbed(model, relative):
    """A copy with a random relative change of the weights of its convolutions."""
    model = copy.deepcopy(model)
    for one in model.modules():
        if isinstance(one, torch.nn.Conv1d):
            one.weight.mul_(1 + relative * torch.randn_like(one.weight).sign())
    return model


def noise(model, relative, tokens, mask, expected, results=outputs):
    """What such a change of the weights does to the results, the largest of three."""
    found = [difference(results(perturbed(model, relative), tokens, mask), expected)
             for _ in range(3)]
    return {name: max(one[name] for one in found) for name in expected}


def facts(name, device):
    model = model_of(name, device)
    batch = torch.randint(1, 128, (3, 18), device=device)
    mask = torch.ones_like(batch)
    mask[-1, :4] = 0  # padding on the left
    generate = functools.partial(model.generate, max_new_tokens=12, do_sample=False, pad_token_id=0)
    # Before fuse Falcon-H1 decodes one sequence only: its norm drops the axis of one token.
    first = 2 if name == "falcon_h1_norm" else 0
    tokens, holes = batch[first:], mask[first:].clone()
    found = {"expected": generate(tokens[:, :11], attention_mask=holes[:, :11]).tolist()}
    holes[-1, 6:8] = 0
    holes[0, 9:11] = 0
    batch_mask, mask = mask, mask[first:]
    plain, with_holes = outputs(model, tokens, mask), outputs(model, tokens, holes)
    # Each sum has at most 5 roundings in either order, and SiLU and the norms have a few more: as
    # if the weights differed by 16 roundings.
    found["noise"] = noise(model, 16 * 2**-24, tokens, mask, plain)
    fused_later = outputs(model, tokens, mask, compat.fuse)
    compat.unfuse(model)
    expected = {cached: gradients(model, batch, batch_mask, cached) for cached in (False, True)}
    found["gradient noise"] = noise(
        model, 16 * 2**-24, batch, batch_mask, expected[False], gradients)
    found["autocast errors"] = autocast_errors(model, SMALL["hidden_size"])
    compat.fuse(model)
    calls.clear()
    found["gradient differences"] = {
        f"cached {cached}": difference(gradients(model, batch, batch_mask, cached),
                                       expected[cached]) for cached in (False, True)}
    found["gradient calls"] = dict(calls)
    if name in COMPILED_TRAINING:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        found["gradient differences"]["compiled"] = difference(
            gradients(model, batch, batch_mask, compiled=compiled), expected[False])
    found["layers"] = compat.fuse(model)
    calls.clear()
    found["tokens"] = generate(batch[:, :11], attention_mask=batch_mask[:, :11]).tolist()
    found["calls"] = dict(calls)
    found["differences"] = {
        "fused": difference(outputs(model, tokens, mask), plain),
        "fused after the prompt": difference(fused_later, plain),
        "with holes in the mask": difference(outputs(model, tokens, holes), with_holes),
        "unfused after the prompt": difference(
            outputs(model, tokens, mask, compat.unfuse), plain)}

    if name in COMPILED:
        prompt = {"input_ids": tokens[:, :11], "attention_mask": mask[:, :11], "use_cache": False}
        compat.fuse(model)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        found["differences"]["compiled"] = difference(
            {"logits 11": compiled(**prompt).logits}, {"logits 11": plain["logits 11"]})
        compat.unfuse(model)

    model = model.bfloat16()  # torch rounds the result of the convolution once more
    plain = outputs(model, tokens, mask)
    found["bf16 noise"] = noise(model, 4 * 2**-9, tokens, mask, plain)
    compat.fuse(model)
    found["bf16 differences"] = difference(outputs(model, tokens, mask), plain)
    return found


device, *names = sys.argv[1:]
torch.backends.cudnn.allow_tf32 = False
with torch.no_grad():
    print(json.dumps({name: facts(name, device) for name in names}))
