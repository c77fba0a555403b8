"""Small random models of transformers, by name."""

import torch
import transformers

SMALL = {"hidden_size": 64, "vocab_size": 128, "num_hidden_layers": 4}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
DELTA_NET = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
             "linear_value_head_dim": 16}

CONFIGS = {
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **SMALL, **ATTENTION, **DELTA_NET, head_dim=16, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, shared_expert_intermediate_size=32),
    "qwen3_5": lambda: transformers.Qwen3_5TextConfig(
        **SMALL, **ATTENTION, **DELTA_NET, head_dim=16),
    "qwen3_5_moe": lambda: transformers.Qwen3_5MoeTextConfig(
        **SMALL, **ATTENTION, **DELTA_NET, head_dim=16, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, shared_expert_intermediate_size=32),
    "mamba2": lambda: transformers.Mamba2Config(
        **SMALL, state_size=16, num_heads=8, head_dim=16, expand=2, n_groups=2, chunk_size=16,
        use_bias=True, pad_token_id=0, bos_token_id=1),
    "lfm2": lambda: transformers.Lfm2Config(
        **SMALL, **ATTENTION, layer_types=["conv", "full_attention", "conv", "conv"],
        block_auto_adjust_ff_dim=False),
    "lfm2_moe": lambda: transformers.Lfm2MoeConfig(
        **SMALL, **ATTENTION, layer_types=["conv", "full_attention", "conv", "conv"],
        num_dense_layers=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
}


def model_of(name, device):
    """A model whose layers matter: as initialized their weights are small and their biases zero."""
    torch.manual_seed(1)
    config = CONFIGS[name]()
    config.eos_token_id = None
    config.tie_word_embeddings = False
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for one in model.modules():
            if isinstance(one, (torch.nn.Linear, torch.nn.Conv1d)):
                one.weight.normal_(std=one.weight[0].numel() ** -0.5)
                if one.bias is not None:
                    one.bias.normal_(std=0.5)
    return model.to(device)
