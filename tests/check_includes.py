#!/usr/bin/env python3
"""Fails on an include that goes against the direction of dependency, or a third-party header outside its one file.

    format <- models <- runtime,  format <- cuda <- runtime,  format, models, runtime <- convert,  cuda <- convert/gpu,  runtime/cli on top
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
    "runtime/gpu": {"format", "models", "runtime", "cuda"},  # the one place where the runtime meets the GPU
    "runtime/cli": {"format", "models", "runtime", "convert", "cuda"},
    "convert": {"format", "models", "runtime", "convert"},
    "convert/gpu": {"format", "models", "runtime", "convert", "cuda"},  # the one place where the converter meets it
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
    allowed = ALLOWED[folder_of(name)]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        include = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
        if not include:
            continue
        header = include.group(1)
        top = header.split("/")[0]
        if top in {"format", "models", "cuda", "runtime", "convert"} and "/" in header and top not in allowed:
            yield f"{name}:{number}: includes {header}: {folder_of(name)}/ may include {', '.join(sorted(allowed))} only"
        for key, owner in THIRD_PARTY.items():
            if header.startswith(key) and not re.fullmatch(owner, name):
                yield f"{name}:{number}: includes {header}: only {owner} may"


def main() -> int:
    files = [p for folder in ("format", "models", "cuda", "runtime", "convert")
             for p in sorted((ROOT / folder).rglob("*")) if p.suffix in {".h", ".cpp", ".cu", ".cuh", ".c"}]
    found = [v for path in files for v in violations(path)]
    print("\n".join(found) if found else f"{len(files)} files keep the direction of dependency")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
