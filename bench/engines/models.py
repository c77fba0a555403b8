"""Configurations of published models, whose weights are random here: speed does not depend on them.

The values are those of the config.json that each model was published with; the number of layers of
a Qwen3-Next may be reduced, so that it fits into one GPU.
"""

import json
import pathlib
from typing import Any, Dict

Config = Dict[str, Any]


def qwen3_next(layers: int) -> Config:
    """Qwen3-Next 80B-A3B, which has 48 layers, three of four with a gated delta net."""
    return {
        "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "dtype": "bfloat16",
        "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": layers,
        "max_position_embeddings": 262144, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "initializer_range": 0.02, "tie_word_embeddings": False,
        # attention
        "full_attention_interval": 4, "num_attention_heads": 16, "num_key_value_heads": 2,
        "head_dim": 256, "attention_bias": False, "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        # gated delta net
        "linear_conv_kernel_dim": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        # mixture of experts
        "intermediate_size": 5120, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "num_experts": 512, "num_experts_per_tok": 10, "norm_topk_prob": True,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        "router_aux_loss_coef": 0.001, "bos_token_id": 151643, "eos_token_id": 151645}


def lfm2(hidden: int, feed_forward: int, heads: int) -> Config:
    """LFM2 with 16 layers, ten of them short convolutions of width 3."""
    attention = [2, 5, 8, 10, 12, 14]
    kinds = ["full_attention" if i in attention else "conv" for i in range(16)]
    return {
        "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "dtype": "bfloat16",
        "vocab_size": 65536, "hidden_size": hidden, "num_hidden_layers": len(kinds),
        "layer_types": kinds, "full_attn_idxs": attention, "max_position_embeddings": 128000,
        "norm_eps": 1e-5, "block_norm_eps": 1e-5, "rope_theta": 1000000.0, "tie_embedding": True,
        "num_attention_heads": heads, "num_key_value_heads": 8,
        # short convolution
        "conv_L_cache": 3, "conv_bias": False, "conv_dim": hidden, "conv_dim_out": hidden,
        # feed forward: two thirds of it, in multiples of 256
        "intermediate_size": feed_forward, "block_dim": hidden, "block_ff_dim": feed_forward,
        "block_auto_adjust_ff_dim": True, "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0, "bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0}


SMALL = {"lfm2-350m": lambda: lfm2(1024, 6656, 16), "lfm2-1.2b": lambda: lfm2(2048, 12288, 32)}
NAMES = "qwen3-next:LAYERS, lfm2-350m, lfm2-1.2b"


def config_of(name: str) -> Config:
    """The configuration of a name, as NAMES has them.

    Raises:
      ValueError: the name is unknown.
    """
    kind, _, layers = name.partition(":")
    if kind == "qwen3-next" and layers.isdigit() and int(layers) > 0:
        return qwen3_next(int(layers))
    if name in SMALL:
        return SMALL[name]()
    raise ValueError(f"model: is {name!r}; expected a folder with config.json, or one of {NAMES}")


def folder_of(name: str, scratch: pathlib.Path) -> pathlib.Path:
    """The folder of a model: `name` itself, or one in `scratch` with a new config.json."""
    if (pathlib.Path(name) / "config.json").exists():
        return pathlib.Path(name)
    config = config_of(name)
    folder = scratch / name.replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def convolution_layers(config: Config) -> int:
    """The number of layers with a short convolution."""
    kinds = config.get("layer_types")
    layers = int(config["num_hidden_layers"])
    if kinds:
        return sum(kind in ("conv", "linear_attention") for kind in kinds)
    return layers - layers // int(config.get("full_attention_interval", layers + 1))
