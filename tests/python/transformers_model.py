"""transformers_model.py MODEL DEVICE MODE: greedy tokens of a small random model, as JSON.

MODE: torch, all operators are those of torch; install, the convolutions are ours; padded, as torch,
with padding before the second prompt; fuse, the same with layers that shortconv.compat.transformers
changed.

A separate program, because transformers looks for causal_conv1d when it is imported.
"""

import functools
import json
import sys

sys.modules["fla"] = None  # importing it fails: all other operators are those of torch in both runs
model_name, device, mode = sys.argv[1:]
calls = {}


def counted(function):
    @functools.wraps(function)
    def call(*arguments, **named):
        calls[function.__name__] = calls.get(function.__name__, 0) + 1
        return function(*arguments, **named)

    return call


if mode == "install":
    from shortconv.compat import causal_conv1d

    for name in ("causal_conv1d_fn", "causal_conv1d_update"):
        setattr(causal_conv1d, name, counted(getattr(causal_conv1d, name)))
    causal_conv1d.install(replace=True)
else:
    sys.modules["causal_conv1d"] = None  # importing it fails

import torch  # noqa: E402
import transformers  # noqa: E402

SMALL = {"hidden_size": 64, "vocab_size": 128, "num_hidden_layers": 4}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
CONFIGS = {
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **SMALL, **ATTENTION, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=16, linear_value_head_dim=16, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, shared_expert_intermediate_size=32),
    "qwen3_5": lambda: transformers.Qwen3_5TextConfig(
        **SMALL, **ATTENTION, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=16, linear_value_head_dim=16),
    "mamba2": lambda: transformers.Mamba2Config(
        **SMALL, state_size=16, num_heads=8, head_dim=16, expand=2, n_groups=2, chunk_size=16,
        eos_token_id=None, pad_token_id=0, bos_token_id=1),
    "lfm2": lambda: transformers.Lfm2Config(
        **SMALL, **ATTENTION, layer_types=["conv", "full_attention", "conv", "conv"],
        block_auto_adjust_ff_dim=False),
}

torch.manual_seed(1)
config = CONFIGS[model_name]()
config.eos_token_id = None
model = transformers.AutoModelForCausalLM.from_config(config).float().to(device).eval()
prompt = torch.randint(1, 128, (2, 11), device=device)
mask = torch.ones_like(prompt)
if mode in ("fuse", "padded"):
    mask[1, :4] = 0  # padding on the left
if mode == "fuse":
    from shortconv import _groups
    from shortconv.compat import transformers as fused

    _groups.forward_groups = counted(_groups.forward_groups)
    fused.convolve = counted(fused.convolve)
    calls["layers"] = fused.fuse(model)
with torch.no_grad():
    tokens = model.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0,
                            attention_mask=mask)
print(json.dumps({"tokens": tokens.tolist(), "calls": calls}))
