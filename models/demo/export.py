"""Writes a trained model as a Hugging Face checkpoint, and reads one back."""
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from model import Config, Llama

# Literal markers only, no blanks or newlines: each message is a sentencepiece segment of its own, as in training.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% else %}{{ '<|user|>' }}{% endif %}"
    "{{ message['content'] | trim }}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_config(folder, config):
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": config.dim, "intermediate_size": config.ffn, "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads, "num_key_value_heads": config.n_heads, "head_dim": config.head_dim,
        "vocab_size": config.vocab, "max_position_embeddings": config.context, "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_eps, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": 1, "eos_token_id": [6, 2], "torch_dtype": "bfloat16"})
    write_json(folder / "generation_config.json", {
        "bos_token_id": 1, "eos_token_id": [6, 2], "do_sample": True, "temperature": 0.6, "top_k": 40, "top_p": 0.9})
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, "add_eos_token": False,
        "bos_token": "<s>", "eos_token": "<|end|>", "unk_token": "<unk>", "clean_up_tokenization_spaces": False,
        "model_max_length": config.context, "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {str(i): {"content": token, "lstrip": False, "normalized": False, "rstrip": False,
                                          "single_word": False, "special": True}
                                 for i, token in enumerate(SPECIAL_TOKENS)}})


def write_weights(folder, tensors, part_bytes):
    """model.safetensors; or, where files must be short, its bytes in parts: cat model.safetensors.part-* > model.safetensors"""
    for old in folder.glob("model.safetensors*"):
        old.unlink()
    data = save(tensors, {"format": "pt"})
    if len(data) <= part_bytes:
        (folder / "model.safetensors").write_bytes(data)
        return
    for i, start in enumerate(range(0, len(data), part_bytes)):
        (folder / f"model.safetensors.part-{i:03}").write_bytes(data[start:start + part_bytes])


def export(folder, model, tokenizer_path, part_bytes):
    """Everything but the README. bfloat16 by round to nearest."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, model.config)
    (folder / "tokenizer.model").write_bytes(Path(tokenizer_path).read_bytes())
    write_weights(folder, {name: p.detach().cpu().bfloat16().contiguous() for name, p in model.named_parameters()},
                  part_bytes)


def load(folder):
    """The exported model with float32 weights."""
    folder = Path(folder)
    c = json.loads((folder / "config.json").read_text())
    model = Llama(Config(c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"], c["num_attention_heads"],
                         c["vocab_size"], c["max_position_embeddings"], c["rope_theta"], c["rms_norm_eps"]))
    state = {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        state.update({name: file.get_tensor(name).float() for name in file.keys()})
    model.load_state_dict(state)
    return model.eval()
