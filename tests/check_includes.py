#!/usr/bin/env python3
"""Fails on an include that goes against the direction of dependency, a third-party header outside its one file, and a source without a
head comment.

    format <- models <- runtime <- runtime/{cpu,gpu,cli}, convert <- convert/gpu;  format <- cuda <- runtime/gpu, convert/gpu;  convert <- runtime/cli
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

ALLOWED = {
    "format": {"format"},
    "models": {"format", "models"},
    "cuda": {"format", "cuda"},
    "runtime": {"format", "models", "runtime"},
    "runtime/cpu": {"format", "models", "runtime", "runtime/cpu"},
    "runtime/gpu": {"format", "models", "runtime", "runtime/gpu", "cuda"},  # the one place where the runtime meets the GPU
    "runtime/cli": {"format", "models", "runtime", "runtime/cli", "convert"},
    "convert": {"format", "models", "runtime", "convert"},
    "convert/gpu": {"format", "models", "runtime", "runtime/gpu", "convert", "convert/gpu", "cuda"},  # and the converter
}
# A file -> what it includes all the same.
EXCEPTIONS = {
    "runtime/backends.cpp": {"runtime/cpu/cpu_backend.h", "runtime/gpu/cuda_backend.h"},  # the list of backends
    "runtime/cli/bench.cpp": {"runtime/cpu/kernels.h", "runtime/cpu/measure.h"},
    "runtime/cli/doctor.cpp": {"runtime/cpu/kernels.h"},
    "convert/forward_loops.h": {"runtime/cpu/kernels.h"},  # the float loops of calibration
    "convert/products.cpp": {"convert/gpu/products.h", "runtime/gpu/choice.h"},  # CPU or GPU
}
# Third-party header -> the only files that include it.
THIRD_PARTY = {
    "sentencepiece": r"runtime/tokenizer_sentencepiece\.cpp",
    "pcre2": r"runtime/regex\.cpp",
    "utf8proc": r"runtime/unicode\.cpp",
    "histedit": r"runtime/cli/line_editor\.cpp",
    "xxhash": r"format/checksum\.cpp",
    "cuda_runtime": r"cuda/.*",
    "CLI/": r"runtime/cli/.*",
    "Eigen": r"convert/.*",
}


def folder_of(path: str) -> str:
    parts = path.split("/")
    return "/".join(parts[:2]) if "/".join(parts[:2]) in ALLOWED else parts[0]


def violations(path: pathlib.Path):
    name = path.relative_to(ROOT).as_posix()
    allowed, exceptions = ALLOWED[folder_of(name)], set(EXCEPTIONS.get(name, ()))
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        include = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
        if not include:
            continue
        header = include.group(1)
        if header in exceptions:
            exceptions.remove(header)
        elif "/" in header and header.split("/")[0] in ALLOWED and folder_of(header) not in allowed:
            yield f"{name}:{number}: includes {header}: {folder_of(name)}/ may include {', '.join(sorted(allowed))} only"
        for key, owner in THIRD_PARTY.items():
            if header.startswith(key) and not re.fullmatch(owner, name):
                yield f"{name}:{number}: includes {header}: only {owner} may"
    for header in sorted(exceptions):
        yield f"{name}: does not include {header}: take the exception away"


def headless(path: pathlib.Path):
    """What style.md asks of every source: its first line says what it holds."""
    if not path.read_text(encoding="utf-8").startswith(("//", "/*")):
        yield f"{path.relative_to(ROOT).as_posix()}:1: expected a comment that says what the file holds"


def sources(*folders):
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*"))
            if p.suffix in {".h", ".cpp", ".cu", ".cuh", ".c"}]


def main() -> int:
    files = sources("format", "models", "cuda", "runtime", "convert")
    found = [v for path in files for v in violations(path)]
    found += [v for path in files + sources("tests") for v in headless(path)]
    found += [f"{name}: is not there: take its exceptions away" for name in EXCEPTIONS if not (ROOT / name).exists()]
    print("\n".join(found) if found else f"{len(files)} files keep the direction of dependency")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
