#!/usr/bin/env python3
"""What each lever of the quantizer is worth: converts a model with levers off, then on one by one, and prints a table.

usage: ablation.py PITH [--model DIR] [--text FILE] [--work DIR] [--only NAME...] [--max-tokens N] [--json FILE]

Defaults: the demo model; the test part of the shared corpus where it is there, else README.md and FORMAT.md of this
repository (never trained or calibrated on either). Every file is compared with the 16-bit one on the same windows. Standard
errors take a window as the unit; those of the comparisons below the table are of the differences window by window.
--json: the rows also as JSON, for `pith inspect --html PAGE --ablation FILE`. Standard library only. Files already in --work are used again.
"""
import argparse
import json
import lzma
import math
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED_TEXT = ROOT.parent / "shared/text/corpus/test.txt.xz"

# The ladder of levers (convert/levers.h): each row adds to the one before.
NEAREST = "outliers=none"
SEARCHED = NEAREST + ",search=on,minimum=free"
COMPENSATED = SEARCHED + ",compensate=on"
SHRUNK_HESSIAN = COMPENSATED + ",hessian=shrunk"
SORTED = SHRUNK_HESSIAN + ",sort=on"
INVERSE = SORTED + ",sensitivity=inverse"
DESCENT = INVERSE + ",descent=4"
CORRECTED = DESCENT + ",correct=on,shrink=off"
SHRUNK = DESCENT + ",correct=on"
BUDGET = SHRUNK + ",budget=measured"
GROUPS = BUDGET + ",group=auto"
# An outlier slot in each row of the demo model's narrow matrices is an eighth of a bit: rows with outliers have it on top
# of the same 4-bit groups.
OUTLIERS = 2.975
TOKENS = ["--calib", "builtin", "--calib-tokens", 16384]
# Name, what the table calls it, options of pith convert. The titles and their order are those of convert/README.md; rows after those are not in it.
ROWS = [(name, title, ["--bits", bits, "--preset", preset, "--ablate", levers, *TOKENS]) for name, title, bits, preset, levers in [
    ("uniform", "uniform 2-bit, min-max, groups of 16", 2.85, "paper", "outliers=none,fine=off"),
    ("random", "+ random 4-bit groups", 2.85, "paper", "outliers=none,sensitivity=random"),
    ("sensitive", "sensitive 4-bit groups instead", 2.85, "paper", NEAREST),
    ("searched", "+ searched scales, free minimum", 2.85, "paper", SEARCHED),
    ("compensated", "+ compensation (LDLQ)", 2.85, "paper", COMPENSATED),
    ("hessian", "+ Hessian shrunk towards its diagonal", 2.85, "paper", SHRUNK_HESSIAN),
    ("sorted", "+ columns sorted", 2.85, "paper", SORTED),
    ("inverse", "+ sensitivity by the inverse Hessian", 2.85, "paper", INVERSE),
    ("descent", "+ descent and refit", 2.85, "paper", DESCENT),
    ("corrected", "+ correction for what earlier layers lost", 2.85, "paper", CORRECTED),
    ("shrunk", "+ as much of it as two halves of the text agree on", 2.85, "paper", SHRUNK),
    ("budget", "+ bits per matrix by measured divergence", 2.85, "paper", BUDGET),
    ("groups", "+ group of 16 or 32 per matrix, measured", 2.85, "paper", GROUPS),
    ("full", "+ calibrated head: all of them", 2.85, "best", ""),
    ("full-plain", "all, but the Hessian as it is", 2.85, "best", "hessian=plain"),
    ("everywhere", "paper's method + outliers everywhere, the largest", OUTLIERS, "paper", "outliers=everywhere,outlier-by=size"),
    ("two-bit", "paper's method + outliers in 2-bit groups only, the largest", OUTLIERS, "paper", "outlier-by=size"),
    ("by-error", "the same, chosen by the error that they remove", OUTLIERS, "paper", ""),
    ("paper", "the paper's preset", 2.85, "paper", ""),
    ("full-random", "all, 4-bit columns by chance", 2.85, "best", "sensitivity=random"),
    ("full-range", "all, 4-bit columns by range", 2.85, "best", "sensitivity=range"),
    ("full-diagonal", "all, 4-bit columns by Hessian diagonal", 2.85, "best", "sensitivity=diagonal"),
    ("full-32", "all, groups of 32", 2.85, "best", "group=32"),
    ("full-parts", "all, bits by kind of matrix", 2.85, "best", "budget=parts"),
    ("full-outliers", "all, with outliers in 2-bit groups", 2.85, "best", "outliers=coarse"),
    ("full-everywhere", "all, with outliers everywhere", 2.85, "best", "outliers=everywhere"),
    ("full-undescended", "all but descent", 2.85, "best", "descent=0"),
    ("full-uncorrected", "all but correction", 2.85, "best", "correct=off"),
    ("full-unshrunk", "all, the correction whole", 2.85, "best", "shrink=off"),
]] + [(f"effort-{effort}", f"as it ships, --effort {effort}", ["--bits", 2.85, "--effort", effort])
      for effort in ("fast", "normal")]
# better, worse: told apart by paired standard errors
COMPARISONS = [("sensitive", "random"), ("two-bit", "everywhere"), ("by-error", "two-bit"), ("sensitive", "paper"),
               ("searched", "sensitive"), ("compensated", "searched"), ("hessian", "compensated"),
               ("sorted", "hessian"), ("inverse", "sorted"),
               ("descent", "inverse"), ("corrected", "descent"), ("shrunk", "corrected"), ("budget", "shrunk"),
               ("groups", "budget"), ("full", "groups"), ("full", "full-random"), ("full", "full-range"), ("full", "full-diagonal"),
               ("full", "full-32"), ("full", "full-parts"), ("full", "full-outliers"),
               ("full-outliers", "full-everywhere"), ("full", "full-undescended"), ("full", "full-uncorrected"),
               ("full", "full-unshrunk"), ("full", "full-plain"), ("full", "paper"), ("effort-normal", "effort-fast")]


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def text_to_measure(work):
    """The held-out text's file, and what it is."""
    text = work / "text.txt"
    if SHARED_TEXT.exists():
        text.write_bytes(lzma.open(SHARED_TEXT).read())
        return text, "the shared corpus, test part"
    text.write_text((ROOT / "README.md").read_text() + (ROOT / "format/FORMAT.md").read_text())
    return text, "README.md and FORMAT.md of this repository: the shared corpus is not here"


def mean_and_error(values):
    n = len(values)
    mean = sum(values) / n
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else math.nan


def measure(pith, work, model, text, row, reference, max_tokens):
    name, _, options = row
    figures = work / f"{name}.json"
    if not figures.exists():
        file = work / f"{name}.pith"
        summary = run(pith, "convert", model, "-o", file, "--restart", *options)
        result = json.loads(run(pith, "eval", file, "--against", reference, "--text", text, "--max-tokens", max_tokens,
                                "--ctx", 256, "--json"))
        result["bits"] = float(summary.split(" bits per weight of the linear")[0].split()[-1])
        figures.write_text(json.dumps(result))
        file.unlink()
    return json.loads(figures.read_text())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pith")
    parser.add_argument("--model", default=ROOT / "models/demo")
    parser.add_argument("--text")
    parser.add_argument("--work")
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--max-tokens", type=int, default=12000)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    scratch = tempfile.TemporaryDirectory(prefix="pith-ablation-")
    work = pathlib.Path(arguments.work or scratch.name)
    work.mkdir(parents=True, exist_ok=True)
    text, source = (arguments.text, arguments.text) if arguments.text else text_to_measure(work)
    reference = work / "reference.pith"
    if not reference.exists():
        run(arguments.pith, "convert", arguments.model, "-o", reference, "--bits", 16)

    print(f"{arguments.model}, against 16 bits on {source}; at most {arguments.max_tokens} tokens, windows of 256;"
          f" calibrated on {TOKENS[-1]} tokens of the built-in text but for the last rows\n")
    print("| quantizer | bits | perplexity ratio | KL divergence | same first token |")
    print("|---|---:|---:|---:|---:|", flush=True)
    results = {}
    for row in ROWS:
        if arguments.only and row[0] not in arguments.only:
            continue
        r = results[row[0]] = measure(arguments.pith, work, arguments.model, text, row, reference, arguments.max_tokens)
        print(f"| {row[1]} | {r['bits']:.3f} | {r['ppl_ratio']:.4f} ± {r['ppl_ratio_se']:.4f} | "
              f"{r['kl_mean']:.4f} ± {r['kl_mean_se']:.4f} | {100 * r['top1_agreement']:.1f} % |", flush=True)

    if arguments.json:
        keys = ("bits", "ppl_ratio", "ppl_ratio_se", "kl_mean", "kl_mean_se", "top1_agreement")
        rows = [{"quantizer": row[1]} | {key: results[row[0]][key] for key in keys} for row in ROWS if row[0] in results]
        model = pathlib.Path(arguments.model).resolve().name
        arguments.json.write_text(json.dumps({"model": model, "text": source, "rows": rows}, indent=1) + "\n")

    titles = {row[0]: row[1] for row in ROWS}
    print("\nDifferences window by window, first less second (in standard errors); negative: the first is better\n")
    print("| first | second | log perplexity | KL divergence |")
    print("|---|---|---:|---:|")
    for better, worse in COMPARISONS:
        if better not in results or worse not in results:
            continue
        cells = []
        for key in ("window_nll_gap", "window_kl"):
            mean, error = mean_and_error([a - b for a, b in zip(results[better][key], results[worse][key])])
            cells.append(f"{mean:+.4f} ± {error:.4f} ({mean / error:+.1f})")
        print(f"| {titles[better].removeprefix('+ ')} | {titles[worse].removeprefix('+ ')} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
