"""Trains the demo model (`--preset demo`) or a larger relative (`--preset base`) from scratch and exports it.

    torchrun --nproc_per_node 2 train.py                    the committed demo model, on two CPU cores
    python train.py --preset base --minutes 9 --out DIR     for one GPU

A run keeps its tokenizer, token streams and state in --work and goes on from there when started again. The same seed,
token budget and process count are meant to give the same model. On CPU cores that are shared with other work, a process of one
thread for each core was several times faster than one process of several threads: processes meet once in an update, threads
in every operation. On a CPU with glibc, set MALLOC_MMAP_THRESHOLD_=8000000000
MALLOC_TRIM_THRESHOLD_=16000000000: returning every activation to the system cost a quarter of the speed.
"""
import argparse
import io
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from data import Batches, prepare, valid_batches
from export import export
from model import Config, Llama
from optimizer import Optimizer

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Preset:
    config: Config
    tokens: int         # budget of the whole run
    decay_tokens: int   # of which the learning rate falls to zero in the last ones
    batch_tokens: int   # per update
    micro_tokens: int   # per forward pass
    muon_lr: float
    adam_lr: float


PRESETS = {
    "demo": Preset(Config(dim=256, ffn=768, n_layers=8, n_heads=4, vocab=8192, context=1024),
                   13_107_200, 4_096_000, 8192, 4096, 0.02, 0.004),
    "base": Preset(Config(dim=768, ffn=2048, n_layers=10, n_heads=12, vocab=16384, context=1024),
                   200_000_000, 50_000_000, 65536, 65536, 0.02, 0.003),
}
STABLE_MIX = (45, 40, 15)  # prose, dialogue, dialogues about pith
DECAY_MIX = (35, 35, 30)   # what is seen last is remembered best
WARMUP_STEPS = 100
PART_BYTES = 15_000_000    # of a state part, and of a checkpoint part of the base preset
PRINT_STEPS, SAVE_STEPS, VALID_STEPS = 20, 50, 200


def write_state(work, state):
    """The state in parts; the marker file is renamed into place last, so that a kill leaves the older state whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    names = []
    for i, start in enumerate(range(0, len(data), PART_BYTES)):
        names.append(f"state-{state['step']:06}-{i:03}.bin")
        (work / names[-1]).write_bytes(data[start:start + PART_BYTES])
    marker = work / "state.txt.part"
    marker.write_text("\n".join(names))
    marker.rename(work / "state.txt")
    for old in work.glob("state-*.bin"):
        if old.name not in names:
            old.unlink()


def read_state(work, device):
    names = (work / "state.txt").read_text().split("\n")
    return torch.load(io.BytesIO(b"".join((work / name).read_bytes() for name in names)), map_location=device)


def average_gradients(model, n_ranks):
    """One message for all gradients: each alone would wait for the slower process."""
    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    for g, mean in zip(grads, (flat / n_ranks).split([g.numel() for g in grads])):
        g.copy_(mean.view_as(g))


@torch.no_grad()
def valid_losses(model, work, device, dtype):
    """Mean loss of each validation stream, on at most 64 windows of 512 tokens."""
    losses = {}
    for name in ("prose", "dialogue", "pith"):
        parts = valid_batches(work, name, 512, 64).to(device).split(8)
        losses[name] = sum(model.loss(x[:, :-1], x[:, 1:], dtype).item() * len(x) for x in parts) / sum(map(len, parts))
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="demo")
    parser.add_argument("--corpus", type=Path, default=ROOT / "../shared/text/corpus")
    parser.add_argument("--work", type=Path, help="state of the run (default: build/train-PRESET)")
    parser.add_argument("--out", type=Path, help="where the checkpoint goes (default: this folder for demo)")
    parser.add_argument("--tokens", type=int, help="budget; may change when a run is resumed")
    parser.add_argument("--decay-tokens", type=int, help="length of the decay phase, at the end of the budget")
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time, keeping the state")
    parser.add_argument("--export-minutes", type=float, default=1e9, help="export to WORK/early this often")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()

    began = time.time()
    preset = PRESETS[arguments.preset]
    config = preset.config
    tokens = arguments.tokens or preset.tokens
    decay_tokens = arguments.decay_tokens or preset.decay_tokens
    batch_tokens = arguments.batch_tokens or preset.batch_tokens
    micro_tokens = min(preset.micro_tokens, batch_tokens)
    work = arguments.work or ROOT / f"build/train-{arguments.preset}"
    out = arguments.out or (Path(__file__).parent if arguments.preset == "demo" else work / "checkpoint")
    part_bytes = PART_BYTES if arguments.preset == "base" else 10**12
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    rank, n_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if n_ranks > 1:
        dist.init_process_group("gloo")
    first = rank == 0  # the one that prints and writes

    if first:
        prepare(arguments.corpus, work, config.vocab, arguments.seed)
    if n_ranks > 1:
        dist.barrier()
    batches = Batches(work, arguments.seed)
    model = Llama(config).to(device)
    optimizer = Optimizer(model, preset.muon_lr, preset.adam_lr)
    if first:
        print(f"{sum(p.numel() for p in model.parameters())} parameters, {tokens} tokens on {device}", flush=True)
    step = seen = 0
    if (work / "state.txt").exists():
        state = read_state(work, device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seen, batches.positions = state["step"], state["seen"], state["positions"]
        if first:
            print(f"resumed at step {step}", flush=True)
    loss_of = model.loss if arguments.no_compile else torch.compile(model.loss, dynamic=False)

    def save():
        write_state(work, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                           "seen": seen, "positions": batches.positions})

    total, last_print, last_export = 0.0, (time.time(), seen), time.time()
    stop = torch.tensor([False])
    while seen < tokens and not stop:
        decaying = tokens - seen <= decay_tokens
        # Short rows cost less attention; the decay phase teaches the full context.
        seq = config.context if decaying else config.context // 2
        rows = batches.next(step, batch_tokens // seq, seq, DECAY_MIX if decaying else STABLE_MIX)
        micro_batches = rows[rank::n_ranks].to(device).split(micro_tokens // seq)
        for x in micro_batches:
            loss = loss_of(x[:, :-1], x[:, 1:], dtype) / len(micro_batches)
            loss.backward()
            total += loss.detach()
        if n_ranks > 1:
            average_gradients(model, n_ranks)
        optimizer.step(min(1.0, (step + 1) / WARMUP_STEPS, (tokens - seen) / decay_tokens))
        step += 1
        seen += batch_tokens
        done = seen >= tokens
        stop[0] = time.time() - began > arguments.minutes * 60
        if n_ranks > 1:
            dist.broadcast(stop, 0)
        if not first:
            continue

        if step % PRINT_STEPS == 0:
            now = time.time()
            rate = (seen - last_print[1]) / (now - last_print[0])
            print(f"step {step}  tokens {seen / 1e6:.2f}M  {rate:.0f} tok/s  loss {float(total) / PRINT_STEPS:.3f}  "
                  f"{'decay  ' if decaying else ''}{(tokens - seen) / rate / 60:.0f} min left", flush=True)
            total, last_print = 0.0, (now, seen)
        if step % VALID_STEPS == 0 or done:
            losses = valid_losses(model, work, device, dtype)
            print("valid  " + "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items()), flush=True)
        if step % SAVE_STEPS == 0 or done:
            save()
        if time.time() - last_export > arguments.export_minutes * 60:
            export(work / "early", model, work / "tokenizer.model", part_bytes)
            last_export = time.time()
    if not first:
        return
    save()
    if seen >= tokens:
        export(out, model, work / "tokenizer.model", part_bytes)
        print(f"exported to {out}", flush=True)


if __name__ == "__main__":
    main()
