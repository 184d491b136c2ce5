"""Random models of a few layers, of any type that transformers has: their configurations, and weights that rounding costs something."""

from typing import Any

LARGEST = 20_000_000
"""Parameters of a checkpoint that counts as small."""
OUTLIER = 10.0
"""How much larger some input columns are than the others, where nothing else is asked for."""


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


SMALL: dict[str, int] = {
    **dict.fromkeys(words("hidden_size n_embd d_model dim embed_dim word_embed_proj_dim embedding_size decoder_hidden_size emb_dim"), 64),
    **dict.fromkeys(words("intermediate_size ffn_hidden_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim d_ff d_inner"), 128),
    **dict.fromkeys(words("moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size"), 64),
    **dict.fromkeys(words("num_hidden_layers n_layer num_layers n_layers decoder_layers encoder_layers num_decoder_layers"), 2),
    **dict.fromkeys(words("num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"), 4),
    **dict.fromkeys(words("num_key_value_heads num_kv_heads linear_num_key_heads"), 2),
    **dict.fromkeys(words("head_dim global_head_dim linear_key_head_dim linear_value_head_dim qk_rope_head_dim qk_nope_head_dim"), 16),
    **dict.fromkeys(words("v_head_dim mamba_d_state mamba_d_head state_size ssm_state_size mamba_head_dim time_step_rank"), 16),
    **dict.fromkeys(words("num_experts num_local_experts n_routed_experts moe_num_experts linear_num_value_heads mamba_n_heads"), 4),
    **dict.fromkeys(words("num_experts_per_tok moe_topk moe_k num_experts_per_token experts_per_token"), 2),
    **dict.fromkeys(words("n_group topk_group mamba_n_groups n_groups first_k_dense_replace n_shared_experts"), 1),
    **dict.fromkeys(words("q_lora_rank kv_lora_rank rotary_dim lru_width mamba_d_ssm"), 32),
    **dict.fromkeys(words("max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length"), 512),
    **{"sliding_window": 128, "full_attention_interval": 2, "block_size": 512, "depth": 2},
}
"""What a configuration's number becomes, by its name."""
OWN: dict[str, dict[str, Any]] = {
    "falcon_mamba": {"time_step_rank": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gptj": {"rotary_dim": 16},
    "codegen": {"rotary_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "mamba": {"time_step_rank": 4},
    "phi": {"num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [1], "mamba_d_head": 32},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_d_head": 32},
    "recurrent_gemma": {"num_hidden_layers": 3},
    **{name: {"num_key_value_heads": 4} for name in words("deepseek_v3 deepseek_v32 axk1 axk2 minicpm3 youtu glm4_moe_lite glm_moe_dsa")},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 4},
    "qwen4_exp_text": {"layer_types": ["linear_attention", "qwen_sparse_attention"]},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"], "vocab_size_per_layer_input": 357, "num_kv_shared_layers": 0},
    "gemma4_text": {"vocab_size_per_layer_input": 357, "hidden_size_per_layer_input": 16},
    "longcat_flash": {"expert_ffn_hidden_size": 64, "num_key_value_heads": 4},
    **{name: {"bos_token_id": 2} for name in ("cwm", "mllama_text_model", "modernbert-decoder")},
    **{name: {"layer_types": ["linear_attention", "full_attention"]} for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")},
    "qwen2_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}},
}
"""Further configuration that single families need to be consistent."""


def small(kind: Any, family: str, vocabulary: int) -> Any:
    """A configuration of a class, with small numbers."""
    defaults = kind().to_dict()
    special = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    values: dict[str, Any] = {
        key: value for key, value in SMALL.items() if isinstance(defaults.get(key), int) or key in ("head_dim", "n_inner")
    }
    values = {key: value for key, value in (values | special).items() if key in defaults} | OWN.get(family, {})
    for key, part in kind.sub_configs.items():
        if hasattr(part, "model_type") and part.model_type:
            values[key] = small(part, part.model_type, vocabulary).to_dict()
    return kind(**values)


def build(family: str, vocabulary: int, outlier: float = OUTLIER) -> Any:
    """A random model of a family, float32; see ``with_outliers``."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    torch.manual_seed(0)
    names = {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    kind, config = getattr(transformers, names[family]), small(CONFIG_MAPPING[family], family, vocabulary)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters: its configuration calls its widths otherwise")
    return with_outliers(kind(config).float(), outlier)


def with_outliers(model: Any, outlier: float) -> Any:
    """The model with every 32nd input column of its matrices ``outlier`` times as large, as real models' are: rounding in groups costs them
    something, however well they have learned."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and parameter.shape[-1] >= 64 and "embed" not in name and "head" not in name:
                parameter[..., ::32] *= outlier
    return model
