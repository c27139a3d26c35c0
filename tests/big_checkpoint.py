#!/usr/bin/env python3
"""Converts a checkpoint of Llama 2 70B's shape: 15 sparse shards (138 GB that take no disk), peak memory, a kill, the resumption.

    tests/big_checkpoint.py build/pith FOLDER [--seconds N] [--layers N] [convert options, by default --preset paper]

Runs the conversion for N seconds, kills it, runs it again for N seconds and reports the largest resident set of both, what was
done, and how much of it the second run took over; fails above 8 GB. Without --seconds it runs to the end after one kill at 60 s. Not
part of `make test`: at 2.85 bits the output is 25 GB.
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

MAX_BYTES = 8e9
DIM, FFN, KV, VOCAB, SHARDS = 8192, 28672, 1024, 32000, 15


def make_checkpoint(folder, n_layers):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": DIM,
              "intermediate_size": FFN, "num_hidden_layers": n_layers, "num_attention_heads": 64,
              "num_key_value_heads": 8, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": VOCAB,
              "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}}
    model = {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": vocab, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "decoder": {"type": "ByteFallback"},
                                                       "model": model}))
    shapes = {"model.embed_tokens.weight": [VOCAB, DIM], "lm_head.weight": [VOCAB, DIM], "model.norm.weight": [DIM]}
    for i in range(n_layers):
        layer = f"model.layers.{i}."
        shapes |= {layer + "input_layernorm.weight": [DIM], layer + "post_attention_layernorm.weight": [DIM],
                   layer + "self_attn.q_proj.weight": [DIM, DIM], layer + "self_attn.k_proj.weight": [KV, DIM],
                   layer + "self_attn.v_proj.weight": [KV, DIM], layer + "self_attn.o_proj.weight": [DIM, DIM],
                   layer + "mlp.gate_proj.weight": [FFN, DIM], layer + "mlp.up_proj.weight": [FFN, DIM],
                   layer + "mlp.down_proj.weight": [DIM, FFN]}
    names, weight_map = list(shapes), {}
    for shard in range(SHARDS):
        file_name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        header, at = {}, 0
        for name in names[shard * len(names) // SHARDS:(shard + 1) * len(names) // SHARDS]:
            n_bytes = 2 * shapes[name][0] * (shapes[name][1] if len(shapes[name]) == 2 else 1)
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [at, at + n_bytes]}
            at += n_bytes
            weight_map[name] = file_name
        text = json.dumps(header).encode()
        with open(folder / file_name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(os.path.getsize(folder / f) for f in set(weight_map.values()))


def run(command, seconds):
    """Peak resident set in bytes, whether it ended by itself, and its stderr."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    began, peak = time.time(), 0
    while process.poll() is None and (seconds is None or time.time() - began < seconds):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            # Anonymous pages: those of mapped files are the system's to drop.
            peak = max(peak, int(re.search(r"RssAnon:\s+(\d+)", status).group(1)))
        except (FileNotFoundError, AttributeError):
            pass
        time.sleep(0.05)
    ended = process.poll() is not None
    if not ended:
        process.send_signal(signal.SIGKILL)
    errors = process.communicate()[1]
    return peak * 1024, ended, errors


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pith")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--layers", type=int, default=80)
    arguments, options = parser.parse_known_args()
    source, output = arguments.folder / "llama-2-70b", arguments.folder / "big.pith"
    n_bytes = make_checkpoint(source, arguments.layers)
    print(f"checkpoint: {n_bytes / 1e9:.1f} GB in {SHARDS} shards, taking "
          f"{sum(f.stat().st_blocks for f in source.iterdir()) * 512 / 1e6:.1f} MB of disk")
    command = [arguments.pith, "convert", str(source), "-o", str(output), *(options or ["--preset", "paper"])]
    done = []
    for seconds in (arguments.seconds or 60, arguments.seconds):
        peak, ended, errors = run(command, seconds)
        parts = sorted(arguments.folder.glob("big.pith*"))
        written = sum(p.stat().st_blocks for p in parts) * 512 / 1e9
        done.append(written)
        print(f"{'ended' if ended else 'killed'}: peak {peak / 1e9:.2f} GB, {written:.2f} GB written")
        if ended and "converted" not in errors and not output.exists():
            sys.exit(errors)
        if peak > MAX_BYTES:
            sys.exit(f"more than {MAX_BYTES / 1e9:.0f} GB of memory")
    if done[1] < done[0]:
        sys.exit("the second run did not go on from the first")


if __name__ == "__main__":
    main()
