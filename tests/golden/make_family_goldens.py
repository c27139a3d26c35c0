#!/usr/bin/env python3
"""Runs tiny random models of every supported family and switch through transformers, into families/.

For each case: families/NAME.json has the config as its authors publish it ("config") and as the library saves it
("saved_config"), the checkpoint's tensor names and shapes, and the prompt; families/NAME.logits has the logits after each
token of the prompt, [n_tokens, vocab] float32, computed in float32 with eager attention.

Weights are not stored. Element i of tensor NAME comes from byte b = z >> 56 of
    z = mix(fnv1a64(NAME) + (i + 1) * 0x9e3779b97f4a7c15), mix = the finalizer of splitmix64
and is a bf16 number (tests/family_checkpoint.h does the same):
    norms (1-D, named *norm.weight)   norm_offset + (b >> 1) / 128
    *_blocks, *_scales (uint8)        b, 121 + b % 4
    *bias, *sinks                     (2 b - 255) / 512
    embeddings                        (2 b - 255) / 256
    other matrices                    (2 b - 255) / 256 * 2^round(log2(sqrt(4.5 / last dimension)))

Needs PyTorch, safetensors and transformers 5. Run when a case is added; the test does not need it.
"""
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

VOCAB, DIM, HEAD_DIM = 96, 64, 16
OUT = Path(__file__).parent / "families"

BASE = {"vocab_size": VOCAB, "hidden_size": DIM, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1,
        "eos_token_id": 2, "initializer_range": 0.02, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
        "use_cache": True}
LLAMA = {**BASE, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
         "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": False,
         "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "pretraining_tp": 1}
MISTRAL = {**BASE, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
           "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": None, "tie_word_embeddings": False,
           "attention_dropout": 0.0}
QWEN2 = {**BASE, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
         "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 8, "use_sliding_window": False,
         "max_window_layers": 1, "tie_word_embeddings": False, "attention_dropout": 0.0}
QWEN3 = {**BASE, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
         "rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_scaling": None, "sliding_window": None,
         "use_sliding_window": False, "max_window_layers": 2, "head_dim": 32, "attention_bias": False,
         "tie_word_embeddings": True, "attention_dropout": 0.0}
GEMMA2 = {**BASE, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "num_hidden_layers": 4,
          "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
          "rope_theta": 10000.0, "head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 8,
          "attn_logit_softcapping": 5.0, "final_logit_softcapping": 20.0, "attention_bias": False,
          "attention_dropout": 0.0, "cache_implementation": "hybrid", "pad_token_id": 0}
GEMMA3 = {**BASE, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 7,
          "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_theta": 1000000,
          "rope_local_base_freq": 10000, "rope_scaling": None, "head_dim": 32, "query_pre_attn_scalar": 24,
          "sliding_window": 8, "sliding_window_pattern": 6, "attn_logit_softcapping": None,
          "final_logit_softcapping": None, "attention_bias": False, "attention_dropout": 0.0,
          "cache_implementation": "hybrid", "pad_token_id": 0}
PHI3 = {**BASE, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "original_max_position_embeddings": 64,
        "sliding_window": None, "tie_word_embeddings": False, "attention_bias": False, "attention_dropout": 0.0,
        "embd_pdrop": 0.0, "resid_pdrop": 0.0, "pad_token_id": 0}
OLMO2 = {**BASE, "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "hidden_act": "silu",
         "rms_norm_eps": 1e-6, "rope_theta": 500000, "rope_scaling": None, "attention_bias": False,
         "attention_dropout": 0.0, "tie_word_embeddings": False}
OLMO3 = {**OLMO2, "architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "num_hidden_layers": 4,
         "sliding_window": 8, "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
         "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32,
                          "beta_slow": 1, "attention_factor": 1.1386294361119891}}
GRANITE = {**BASE, "architectures": ["GraniteForCausalLM"], "model_type": "granite", "hidden_act": "silu",
           "rms_norm_eps": 1e-5, "rope_theta": 10000000.0, "rope_scaling": None, "attention_bias": False,
           "mlp_bias": False, "attention_dropout": 0.1, "tie_word_embeddings": True, "embedding_multiplier": 3.0,
           "residual_multiplier": 0.6, "attention_multiplier": 0.125, "logits_scaling": 8.0}
SMOLLM3 = {**BASE, "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "num_hidden_layers": 4,
           "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 5000000.0, "rope_scaling": None,
           "no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4, "layer_types": ["full_attention"] * 4,
           "sliding_window": None, "use_sliding_window": False, "max_window_layers": 28, "attention_bias": False,
           "attention_dropout": 0.0, "mlp_bias": False, "pretraining_tp": 2, "tie_word_embeddings": True,
           "pad_token_id": 2}
MIXTRAL = {**BASE, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu",
           "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
           "attention_dropout": 0.0, "num_local_experts": 6, "num_experts_per_tok": 2, "output_router_logits": False,
           "router_aux_loss_coef": 0.02}
QWEN3_MOE = {**QWEN3, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
             "tie_word_embeddings": False, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48,
             "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "output_router_logits": False,
             "router_aux_loss_coef": 0.001}
GPT_OSS = {**BASE, "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_act": "silu",
           "intermediate_size": 96, "rms_norm_eps": 1e-5, "rope_theta": 150000, "head_dim": 16, "sliding_window": 8,
           "layer_types": ["sliding_attention", "full_attention"], "attention_bias": True, "attention_dropout": 0.0,
           "num_local_experts": 6, "num_experts_per_tok": 3, "experts_per_token": 3, "swiglu_limit": 7.0,
           "initial_context_length": 16, "tie_word_embeddings": False, "output_router_logits": False,
           "router_aux_loss_coef": 0.9, "pad_token_id": 0,
           "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
                            "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}}
QUANTIZED = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": [
    "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}}
# Models that also see: the language model is text_config, and the other tensors are there to be left out.
OUTSIDE = ("architectures", "torch_dtype", "transformers_version", "bos_token_id", "eos_token_id", "initializer_range")
GEMMA3_SEES = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "torch_dtype": "bfloat16",
               "transformers_version": "4.50.0", "bos_token_id": 1, "eos_token_id": [1, 2], "initializer_range": 0.02,
               "boi_token_index": 90, "eoi_token_index": 91, "image_token_index": 92, "mm_tokens_per_image": 4,
               "text_config": {k: v for k, v in GEMMA3.items() if k not in OUTSIDE},
               "vision_config": {"hidden_size": 16, "image_size": 28, "intermediate_size": 16, "patch_size": 14,
                                 "model_type": "siglip_vision_model", "num_attention_heads": 2,
                                 "num_hidden_layers": 1, "vision_use_head": False}}
MISTRAL3 = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "torch_dtype": "bfloat16",
            "transformers_version": "4.50.0", "tie_word_embeddings": False, "image_token_index": 10,
            "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu", "spatial_merge_size": 2, "vision_feature_layer": -1,
            "text_config": {k: v for k, v in {**MISTRAL, "head_dim": 32}.items() if k not in OUTSIDE},
            "vision_config": {"hidden_size": 16, "image_size": 28, "intermediate_size": 16, "patch_size": 14,
                              "model_type": "pixtral", "num_attention_heads": 2, "num_hidden_layers": 1,
                              "head_dim": 8}}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def longrope(n):
    return {"type": "longrope", "short_factor": [1.0 + 0.05 * i for i in range(n)],
            "long_factor": [1.0 + 0.9 * i for i in range(n)]}


# name: (config, switches in words, tokens of the prompt)
CASES = {
    "llama-2": ({**LLAMA, "num_key_value_heads": 4}, "all heads have keys", 40),
    "llama-3": ({**LLAMA, "rope_theta": 500000.0}, "grouped heads", 40),
    "llama-3.1": ({**LLAMA, "rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE}, "RoPE llama3", 40),
    "llama-3.2": ({**LLAMA, "rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE, "head_dim": 32,
                   "tie_word_embeddings": True}, "RoPE llama3, tied, head_dim", 40),
    "smollm2": ({**LLAMA, "rope_theta": 100000, "tie_word_embeddings": True, "num_attention_heads": 3,
                 "num_key_value_heads": 1, "hidden_size": 48, "is_llama_config": True, "rope_interleaved": False},
                "tied, 3 heads", 40),
    "llama-bias": ({**LLAMA, "attention_bias": True, "mlp_bias": True}, "biases everywhere", 40),
    "llama-linear": ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}}, "RoPE linear", 40),
    "llama-dynamic-short": ({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
                            "RoPE dynamic within the context", 40),
    "llama-dynamic-long": ({**LLAMA, "max_position_embeddings": 16, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
                           "RoPE dynamic beyond the context", 40),
    "llama-yarn": ({**LLAMA, "rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2, "attention_factor": 1.25}},
                   "RoPE YaRN, own betas and factor", 40),
    "mistral-0.1": ({**MISTRAL, "sliding_window": 8}, "sliding window", 40),
    "mistral-nemo": ({**MISTRAL, "head_dim": 32, "rope_theta": 1000000.0}, "head_dim", 40),
    "mistral-small": ({**MISTRAL, "head_dim": 32, "rope_theta": 1000000000.0, "num_hidden_layers": 3},
                      "head_dim, RoPE base 1e9", 40),
    "mistral-yarn": ({**MISTRAL, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}},
                     "RoPE YaRN with mscale", 40),
    "qwen2": (QWEN2, "q, k, v bias", 40),
    "qwen2-window": ({**QWEN2, "use_sliding_window": True}, "window from layer 1 on", 40),
    "qwen2.5-yarn": ({**QWEN2, "tie_word_embeddings": True, "rope_scaling": {**YARN, "type": "yarn"}},
                     "RoPE YaRN, tied", 40),
    "qwen3": (QWEN3, "norms of q and k heads, head_dim, tied", 40),
    "qwen3-yarn": ({**QWEN3, "rope_scaling": YARN, "attention_bias": True}, "RoPE YaRN, biases", 40),
    "gemma-2": (GEMMA2, "softcaps, alternate windows, post norms, 1+w, GELU", 40),
    "gemma-3": (GEMMA3, "two RoPE bases, windows in 5 of 6, norms of heads", 40),
    "gemma-3-linear": ({**GEMMA3, "sliding_window_pattern": 2, "num_hidden_layers": 4,
                        "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "global layers RoPE linear", 40),
    "gemma-3-sees": (GEMMA3_SEES, "language model of a model that sees", 40),
    "mistral-3-sees": (MISTRAL3, "language model of a model that sees", 40),
    "phi-3": (PHI3, "fused q/k/v and gate/up", 40),
    "phi-3-window": ({**PHI3, "sliding_window": 8}, "sliding window", 40),
    "phi-3-long-short": ({**PHI3, "original_max_position_embeddings": 16, "rope_scaling": longrope(8)},
                         "LongRoPE, short factors", 16),
    "phi-3-long": ({**PHI3, "original_max_position_embeddings": 16, "rope_scaling": longrope(8)},
                   "LongRoPE, long factors", 40),
    "phi-4": ({**PHI3, "rope_theta": 250000}, "RoPE base", 40),
    "phi-4-mini": ({**PHI3, "head_dim": 16, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 16,
                    "rope_scaling": longrope(6), "tie_word_embeddings": True}, "partial rotation, LongRoPE, tied", 40),
    "olmo-2": (OLMO2, "no input norms, post norms, norms of whole q and k", 40),
    "olmo-3": (OLMO3, "as OLMo 2, windows in 3 of 4, RoPE YaRN", 40),
    "granite": (GRANITE, "embedding, attention, residual and logit multipliers, tied", 40),
    "granite-untied": ({**GRANITE, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
                       "multipliers, biases", 40),
    "smollm3": (SMOLLM3, "every 4th layer without RoPE, tied", 40),
    "mixtral": (MIXTRAL, "6 experts, 2 used", 40),
    "mixtral-window": ({**MIXTRAL, "sliding_window": 8}, "experts, sliding window", 40),
    "qwen3-moe": (QWEN3_MOE, "6 experts, 3 used, shares renormalized", 40),
    "qwen3-moe-raw": ({**QWEN3_MOE, "norm_topk_prob": False}, "shares not renormalized", 40),
    "gpt-oss": ({**GPT_OSS, **QUANTIZED}, "MXFP4, sinks, clamped SwiGLU, biases, windows, RoPE YaRN", 40),
    "gpt-oss-bf16": (GPT_OSS, "as gpt-oss, weights in bf16", 40),
}


def random_bytes(name, n):
    seed = 0xcbf29ce484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001b3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9e3779b97f4a7c15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(56)).astype(np.int64)


def make_tensor(name, shape, norm_offset):
    b = random_bytes(name, math.prod(shape)).reshape(shape)
    if name.endswith("_blocks"):
        return torch.from_numpy(b.astype(np.uint8))
    if name.endswith("_scales"):
        return torch.from_numpy((121 + b % 4).astype(np.uint8))
    if name.endswith("norm.weight"):
        value = norm_offset + (b >> 1) / 128
    elif name.endswith("bias") or name.endswith("sinks"):
        value = (2 * b - 255) / 512
    elif "embed" in name:
        value = (2 * b - 255) / 256
    else:
        value = (2 * b - 255) / 256 * 2.0 ** round(math.log2(math.sqrt(4.5 / shape[-1])))
    exact = torch.from_numpy(value)
    rounded = exact.to(torch.bfloat16)
    assert torch.equal(rounded.double(), exact), name
    return rounded


def tensor_shapes(config, folder):
    """Names and shapes of the checkpoint as it is published, from what the library saves."""
    model = getattr(transformers, config.architectures[0])(config)
    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    return shapes, json.loads((folder / "config.json").read_text())


def pack_experts(shapes, config):
    """gpt-oss as published: blocks of 32 4-bit floats with a scale each, output dimension first."""
    packed = {}
    for name, shape in shapes.items():
        if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj"):
            n_experts, n_in, n_out = shape
            packed[name + "_blocks"] = [n_experts, n_out, n_in // 32, 16]
            packed[name + "_scales"] = [n_experts, n_out, n_in // 32]
        else:
            packed[name] = shape
    return packed


def unpack_experts(tensors):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors
    plain = {}
    for name, tensor in tensors.items():
        if name.endswith("_blocks"):
            scales = tensors[name.replace("_blocks", "_scales")]
            plain[name.removesuffix("_blocks")] = convert_moe_packed_tensors(tensor, scales, dtype=torch.float32)
        elif not name.endswith("_scales"):
            plain[name] = tensor.float()
    return plain


def run(name):
    published, switches, n_tokens = CASES[name]
    is_packed = "quantization_config" in published
    readable = {k: v for k, v in published.items() if k != "quantization_config"}
    norm_offset = -0.5 if published["model_type"].startswith("gemma") else 0.5
    ids = (3 + random_bytes("ids of " + name, n_tokens) % (VOCAB - 3)).tolist()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "config.json").write_text(json.dumps(readable))
        config = transformers.AutoConfig.from_pretrained(folder)
        shapes, saved_config = tensor_shapes(config, folder)
        if is_packed:
            shapes = pack_experts(shapes, config)
            saved_config["quantization_config"] = published["quantization_config"]
        tensors = {key: make_tensor(key, shape, norm_offset) for key, shape in shapes.items()}
        save_file(unpack_experts(tensors) if is_packed else tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(readable))
        model, info = getattr(transformers, config.architectures[0]).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        assert not any(info.values()), info
        with torch.no_grad():
            logits = model.eval()(torch.tensor([ids])).logits[0]
    assert logits.shape == (n_tokens, VOCAB)
    (OUT / f"{name}.logits").write_bytes(logits.float().numpy().tobytes())
    lines = [f' "{key}": {json.dumps(value)}' for key, value in {
        "name": name, "switches": switches, "norm_offset": norm_offset, "ids": ids, "config": published,
        "saved_config": saved_config, "tensors": shapes}.items()]
    (OUT / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{name}: logits {logits.min():.3f} to {logits.max():.3f}, deviation {logits.std():.3f}")


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    for case in sys.argv[1:] or CASES:
        run(case)
