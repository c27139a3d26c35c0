#!/usr/bin/env python3
"""Writes a tiny random Llama checkpoint with a byte-level tokenizer and a chat template: enough to run every command.

usage: tiny_model.py FOLDER [--break WHAT]     WHAT: see BREAKS. Standard library only; the same bytes every time.
"""
import json, os, random, struct, sys

DIM, FFN, LAYERS, HEADS, KV_HEADS, CONTEXT = 64, 192, 2, 4, 2, 512
SPECIALS = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = ("{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}"
            "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
# name of a defect -> what it does is in write()
BREAKS = ["truncated-shard", "wrong-dtype", "missing-tensor", "vocabulary", "architecture", "nan", "unknown-key",
          "no-template", "mixture", "nan-router", "huge-norm"]  # the last three a mixture of experts
EXPERTS, ACTIVE_EXPERTS = 8, 4


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes."""
    kept = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table, n = {}, 0
    for b in range(256):
        table[b] = chr(b) if b in kept else chr(256 + n)
        n += b not in kept
    return table


def tokenizer():
    vocab = {text: i for i, text in enumerate(SPECIALS)}
    for stand_in in byte_alphabet().values():
        vocab[stand_in] = len(vocab)
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, t in enumerate(SPECIALS)]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                      "merges": []}}


def tensors(n_vocab, is_mixture=False):
    rng = random.Random(1)
    head = DIM // HEADS

    def matrix(rows, cols):
        scale = 1.2 / cols ** 0.5
        return [rows, cols], [rng.gauss(0, scale) for _ in range(rows * cols)]

    def norm():
        return [DIM], [1.0] * DIM

    yield "model.embed_tokens.weight", *matrix(n_vocab, DIM)
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", *norm()
        yield p + "self_attn.q_proj.weight", *matrix(HEADS * head, DIM)
        yield p + "self_attn.k_proj.weight", *matrix(KV_HEADS * head, DIM)
        yield p + "self_attn.v_proj.weight", *matrix(KV_HEADS * head, DIM)
        yield p + "self_attn.o_proj.weight", *matrix(DIM, HEADS * head)
        yield p + "post_attention_layernorm.weight", *norm()
        if is_mixture:
            yield p + "block_sparse_moe.gate.weight", *matrix(EXPERTS, DIM)
            for e in range(EXPERTS):
                yield p + f"block_sparse_moe.experts.{e}.w1.weight", *matrix(FFN, DIM)
                yield p + f"block_sparse_moe.experts.{e}.w3.weight", *matrix(FFN, DIM)
                yield p + f"block_sparse_moe.experts.{e}.w2.weight", *matrix(DIM, FFN)
            continue
        yield p + "mlp.gate_proj.weight", *matrix(FFN, DIM)
        yield p + "mlp.up_proj.weight", *matrix(FFN, DIM)
        yield p + "mlp.down_proj.weight", *matrix(DIM, FFN)
    yield "model.norm.weight", *norm()
    yield "lm_head.weight", *matrix(n_vocab, DIM)


def bf16(values):
    return b"".join(struct.pack("<f", v)[2:] for v in values)


def write(folder, defect=None):
    os.makedirs(folder, exist_ok=True)
    tok = tokenizer()
    n_vocab = len(tok["model"]["vocab"])
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": n_vocab, "hidden_size": DIM,
              "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
              "num_key_value_heads": KV_HEADS, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
              "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1,
              "eos_token_id": 2, "torch_dtype": "bfloat16"}
    if defect == "architecture":
        config["architectures"] = ["HovercraftForCausalLM"]
    if defect == "unknown-key":
        config["warp_factor"] = 9
    if defect == "vocabulary":
        tok["model"]["vocab"]["zzzz"] = n_vocab + 7
    is_mixture = defect in ("mixture", "nan-router", "huge-norm")
    if is_mixture:
        config.update(architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=EXPERTS,
                      num_experts_per_tok=ACTIVE_EXPERTS)
    header, blob = {}, b""
    for name, shape, values in tensors(n_vocab, is_mixture):
        if defect == "nan-router" and name.endswith("block_sparse_moe.gate.weight"):
            values = [float("nan")] * len(values)
        if defect == "huge-norm" and name == "model.layers.0.input_layernorm.weight":
            values = [3e38] * len(values)
        if defect == "missing-tensor" and name == "model.layers.1.mlp.up_proj.weight":
            continue
        if defect == "nan" and name == "model.layers.1.self_attn.q_proj.weight":
            values[77] = float("nan")
        data = bf16(values)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(blob), len(blob) + len(data)]}
        if defect == "wrong-dtype" and name == "model.layers.0.mlp.up_proj.weight":
            header[name]["dtype"] = "I16"
        blob += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    shard = struct.pack("<Q", len(text)) + text + blob
    if defect == "truncated-shard":
        shard = shard[:-1000]
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(shard)
    tok_config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
                  "add_eos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    if defect != "no-template":
        tok_config["chat_template"] = TEMPLATE
    for name, content in (("config.json", config), ("tokenizer.json", tok), ("tokenizer_config.json", tok_config),
                          ("generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})):
        with open(os.path.join(folder, name), "w") as f:
            json.dump(content, f)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 4) or (len(sys.argv) == 4 and sys.argv[3] not in BREAKS):
        sys.exit(__doc__)
    write(sys.argv[1], sys.argv[3] if len(sys.argv) == 4 else None)
