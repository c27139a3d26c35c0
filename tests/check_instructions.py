#!/usr/bin/env python3
"""check_instructions.py COUNT_KERNEL: instructions a weight of the products, under valgrind, against bounds.

Instructions are counted exactly whatever else the machine does, so a slower loop shows at once. Valgrind has no AVX-512;
AVX2 stands for the vector kernels. A bound is the count with GCC 12 plus a tenth; another compiler may need another.
Exit code 77 (skipped) without valgrind or on another processor."""
import os
import platform
import re
import shutil
import subprocess
import sys

# kernels, tokens at once, instructions a weight (and token) at most
BOUNDS = [("avx2", 1, 0.33), ("avx2", 32, 0.16), ("scalar", 1, 13.8)]


def instructions(program, kernels, tokens, rounds):
    run = subprocess.run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, kernels, str(tokens),
                          str(rounds)], capture_output=True, text=True, check=True)
    return int(re.search(r"Collected : (\d+)", run.stderr).group(1)), int(run.stdout)


def main():
    if shutil.which("valgrind") is None or platform.machine() != "x86_64":
        print("SKIP: needs valgrind on x86_64")
        sys.exit(1 if os.environ.get("PITH_NO_SKIP") == "1" else 77)  # as tests/skip.h
    failed = False
    for kernels, tokens, bound in BOUNDS:
        few, weights = instructions(sys.argv[1], kernels, tokens, 1)
        many, _ = instructions(sys.argv[1], kernels, tokens, 5)
        each = (many - few) / (4 * weights)
        print(f"{kernels}, {tokens} tokens: {each:.3f} instructions a weight, at most {bound}")
        failed = failed or each > bound
    sys.exit(failed)


main()
