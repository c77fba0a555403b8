"""Small random models of transformers, by name."""

import torch
import transformers

SMALL = {"hidden_size": 64, "vocab_size": 128, "num_hidden_layers": 4}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
DELTA_NET = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
             "linear_value_head_dim": 16}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 16,
         "mamba_chunk_size": 16, "mamba_proj_bias": True}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
HYBRID = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]


def falcon_h1(**options):
    return transformers.FalconH1Config(
        **SMALL, **ATTENTION, **MAMBA, mamba_d_ssm=128, head_dim=16, ssm_in_multiplier=0.75,
        ssm_multipliers=[0.5, 1.25, 0.75, 1.5, 0.875], **options)


CONFIGS = {
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **SMALL, **ATTENTION, **DELTA_NET, head_dim=16, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, shared_expert_intermediate_size=32),
    "qwen3_5": lambda: transformers.Qwen3_5TextConfig(
        **SMALL, **ATTENTION, **DELTA_NET, head_dim=16),
    "qwen3_5_moe": lambda: transformers.Qwen3_5MoeTextConfig(
        **SMALL, **ATTENTION, **DELTA_NET, head_dim=16, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, shared_expert_intermediate_size=32),
    "olmo_hybrid": lambda: transformers.OlmoHybridConfig(
        **SMALL, **ATTENTION, **DELTA_NET, layer_types=HYBRID, pad_token_id=0),
    "kimi_linear": lambda: transformers.KimiLinearConfig(
        **SMALL, **EXPERTS, num_attention_heads=4, num_key_value_heads=4, intermediate_size=96,
        moe_intermediate_size=32, kv_lora_rank=32, qk_rope_head_dim=8, qk_nope_head_dim=16,
        v_head_dim=16, linear_head_dim=16, linear_num_heads=4, layer_types=HYBRID, pad_token_id=0),
    "mamba2": lambda: transformers.Mamba2Config(
        **SMALL, state_size=16, num_heads=8, head_dim=16, expand=2, n_groups=2, chunk_size=16,
        use_bias=True, pad_token_id=0, bos_token_id=1),
    "falcon_h1": falcon_h1,
    "falcon_h1_norm": lambda: falcon_h1(mamba_rms_norm=True),
    "nemotron_h": lambda: transformers.NemotronHConfig(
        **{**SMALL, **ATTENTION}, head_dim=16, ssm_state_size=16, mamba_num_heads=8,
        mamba_head_dim=16, n_groups=2, chunk_size=16, use_bias=True,
        layers_block_type=["linear_attention", "full_attention", "linear_attention", "mlp"]),
    "bamba": lambda: transformers.BambaConfig(
        **SMALL, **ATTENTION, **MAMBA, attn_layer_indices=[1]),
    "granite": lambda: transformers.GraniteMoeHybridConfig(
        **SMALL, **ATTENTION, **EXPERTS, **MAMBA, shared_intermediate_size=32, layer_types=HYBRID,
        pad_token_id=0),
    "zamba2": lambda: transformers.Zamba2Config(
        **SMALL, **ATTENTION, n_mamba_heads=8, mamba_ngroups=2, mamba_d_state=16, chunk_size=16,
        add_bias_linear=True,
        layers_block_type=["linear_attention", "linear_attention", "hybrid", "linear_attention"]),
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
