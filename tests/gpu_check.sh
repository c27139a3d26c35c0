#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under nine minutes and without any file from elsewhere: builds, the sanitizers, every
# kernel and the whole backend against the CPU, greedy text, then timings. Prints tables and writes cuda/results/DATE-GPU.md.
#
#   tests/gpu_check.sh                  build in build-gpu and check
#   tests/gpu_check.sh prepare FOLDER   on a machine that has what building needs: programs and the libraries they want
#   tests/gpu_check.sh run FOLDER       on the GPU machine: no building, the prepared programs
#
# Variables: JOBS, PITH_CUDA_ARCHS (native; "90a" to prepare for an H100 or H200), WORK (where models of up to 14 GB are
# written, default a new folder under /tmp), PITH_SHAPES (default llama-2-7b llama-3-8b tinyllama-1.1b), SECONDS_MAX (520).
set -uo pipefail
cd "$(dirname "$0")/.."
mode=${1:-check} folder=${2:-build-gpu/gpu}
SECONDS_MAX=${SECONDS_MAX:-520}
export PATH=$PATH:/usr/local/cuda/bin
programs="gpu_kernels gpu_backend gpu_families gpu_bench"
failed=0

left() { echo $((SECONDS_MAX - SECONDS)); }
note() { echo "[$SECONDS s] $*" >&2; }

build() {
  cmake -S . -B build-gpu -G Ninja -DPITH_CUDA=ON -DPITH_CUDA_ARCHS="${PITH_CUDA_ARCHS:-native}" >/dev/null &&
    cmake --build build-gpu -j "${JOBS:-$(nproc)}" --target pith $programs >build-gpu/build.log 2>&1 ||
    { tail -20 build-gpu/build.log; exit 1; }
  mkdir -p "$folder/lib"
  cp build-gpu/pith "$folder/"
  for p in $programs; do cp "build-gpu/tests/$p" "$folder/"; done
  # Libraries beside glibc's own, for a machine that lacks them.
  ldd "$folder"/pith "$folder"/gpu_backend | awk '$3 ~ /^\// {print $3}' | sort -u |
    grep -vE '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*)\.so' | xargs -I{} cp -L {} "$folder/lib/"
  strip "$folder"/pith "$folder"/gpu_* "$folder"/lib/* 2>/dev/null
}

# in_time SECONDS NAME COMMAND...: runs it with a limit; its failure is remembered, its output kept.
in_time() {
  local limit=$1 name=$2
  shift 2
  local room
  room=$(left)
  [ "$room" -lt 5 ] && { echo "| $name | not run: no time left |"; return; }
  [ "$limit" -gt "$room" ] && limit=$room
  local log="$WORK/log.$(echo "$name" | tr -c 'a-z0-9\n' _)"
  timeout "$limit" "$@" >"$log" 2>&1
  local code=$?
  if [ $code = 0 ]; then echo "| $name | ok |"
  elif [ $code = 124 ]; then echo "| $name | stopped after $limit s: $(grep -vE '^\s*$' "$log" | tail -1 | cut -c1-120) |"
  else
    failed=1
    echo "| $name | FAILED ($code) |"
    tail -30 "$log" >&2
  fi
}

[ "$mode" = prepare ] && { build; du -sh "$folder"; exit 0; }
[ "$mode" = check ] && { note "building"; build; }
[ -x "$folder/gpu_bench" ] || { echo "gpu_check: no programs in $folder" >&2; exit 2; }
export LD_LIBRARY_PATH=$(realpath "$folder/lib")
# A system's own copy is preferred where the programs run with it.
env -u LD_LIBRARY_PATH "$folder/pith" doctor >/dev/null 2>&1 && unset LD_LIBRARY_PATH
WORK=${WORK:-$(mktemp -d)}
pith=$folder/pith
gpu=$("$pith" doctor | sed -n 's/^gpu *//p')
case $gpu in cuda:*) ;; *) echo "SKIP: $gpu"; [ -n "${PITH_NO_SKIP:-}" ] && exit 1; exit 77 ;; esac
name=$(echo "$gpu" | sed -E 's/^cuda:0 ([^,]*),.*/\1/; s/[^A-Za-z0-9]+/-/g')
mkdir -p cuda/results
out=cuda/results/$(date +%Y-%m-%d)-$name.md
exec > >(tee "$out")

echo "# $name, $(date +%Y-%m-%d)"
echo
echo "Commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown). $gpu. By tests/gpu_check.sh."
echo
echo "## Correctness"
echo
echo "| check | result |"
echo "|---|---|"
note "correctness"
in_time 60 "kernels against the CPU reference, outputs poisoned" "$folder/gpu_kernels"
in_time 60 "backend against the CPU backend" "$folder/gpu_backend"
in_time 40 "every family against the reference's logits" "$folder/gpu_families" "the CUDA backend*"
if command -v compute-sanitizer >/dev/null; then
  in_time 45 "memcheck, kernels" compute-sanitizer --error-exitcode 9 --tool memcheck "$folder/gpu_kernels"
  in_time 45 "racecheck, kernels" compute-sanitizer --error-exitcode 9 --tool racecheck "$folder/gpu_kernels"
  in_time 30 "synccheck, kernels" compute-sanitizer --error-exitcode 9 --tool synccheck "$folder/gpu_kernels"
  in_time 30 "memcheck, backend" compute-sanitizer --error-exitcode 9 --tool memcheck "$folder/gpu_backend" "cuda kernels of every*"
  in_time 45 "memcheck, experts and split models" compute-sanitizer --error-exitcode 9 --tool memcheck "$folder/gpu_backend" "cuda logits*,the first layers*"
else
  echo "| compute-sanitizer | not found |"
fi
if "$pith" convert models/demo -o "$WORK/demo.pith" >/dev/null 2>&1; then
  text() { "$pith" run "$WORK/demo.pith" -p "What is pith?" -n 48 --temp 0 "${@:2}" >"$WORK/text.$1" 2>/dev/null; }
  text cpu --device cpu
  text cuda --device cuda
  text split --device cuda --gpu-layers 2
  for device in cuda split; do
    if [ -s "$WORK/text.cpu" ] && cmp -s "$WORK/text.cpu" "$WORK/text.$device"; then echo "| greedy text of the demo model, 48 tokens, $device | equal |"
    else
      same=$(cmp "$WORK/text.cpu" "$WORK/text.$device" 2>/dev/null | sed -E 's/.*byte ([0-9]+).*/\1/')
      echo "| greedy text of the demo model, 48 tokens, $device | differs from byte ${same:-?} (allowed where two logits are closer than rounding) |"
    fi
  done
fi
echo

note "kernels"
echo "# Kernels alone"
echo
timeout "$(($(left) * 4 / 10))" "$folder/gpu_bench" || { [ $? = 124 ] && echo "(stopped: no time left)"; }

note "models"
echo
echo "# Models (pith synth, pith bench)"
echo
echo "| shape | bits | device memory | prompt | t/s prompt | context | t/s generation | weights GB/s |"
echo "|---|---|---|---|---|---|---|---|"
for shape in ${PITH_SHAPES:-llama-2-7b llama-3-8b tinyllama-1.1b}; do
  for bits in 2.85 16; do
    [ "$(left)" -lt 45 ] && { echo "| $shape | $bits | not run: no time left | | | | | |"; continue; }
    file=$WORK/$shape-$bits.pith
    note "$shape at $bits bits"
    timeout "$(left)" "$pith" synth --shape "$shape" --bits "$bits" -o "$file" >/dev/null 2>&1 || { echo "| $shape | $bits | no file | | | | | |"; continue; }
    bytes=$("$pith" plan "$file" --device cuda --chunk 1024 --json 2>/dev/null | sed -n 's/.*"total_bytes": *\([0-9]*\).*/\1/p')
    for prompt in 16 512 2048 4096; do
      [ "$(left)" -lt 20 ] && break
      timeout 60 "$pith" bench "$file" --device cuda --chunk 1024 -p $prompt -n 64 --repeat 3 --json >"$WORK/bench" 2>"$WORK/bench.err" ||
        { failed=1; echo "| $shape | $bits | $(tail -1 "$WORK/bench.err" | cut -c1-100) | $prompt | | | | |"; break; }
      field() { sed -n "s/.*\"$1\": *\([0-9.]*\).*/\1/p" "$WORK/bench"; }
      echo "| $shape | $bits | $(awk "BEGIN {printf \"%.2f GB\", ${bytes:-0} / 1e9}") | $(field prompt_tokens) | $(field prompt_tps) | $(field prompt_tokens) | $(field generation_tps) | $(field gb_per_s) |"
    done
    if [ "$shape $bits" = "llama-2-7b 2.85" ]; then
      for kernels in registers registers-sync async async-sync bulk-sync; do
        [ "$(left)" -lt 20 ] && break
        timeout 40 "$pith" bench "$file" --device cuda --chunk 1024 --kernels $kernels -p 512 -n 64 --json >"$WORK/bench" 2>/dev/null &&
          echo "| $shape | $bits, $kernels | | 512 | | 512 | $(field generation_tps) | $(field gb_per_s) |"
      done
    fi
    rm -f "$file"
  done
done

note "PyTorch"
if [ "$(left)" -gt 15 ]; then
  timeout "$(left)" python3 - <<'P' 2>/dev/null
import torch
print("\n# PyTorch's fp16 matrix-vector product\n\n| shape | us |\n|---|---|")
for name, rows, cols in (("7B qkv", 12288, 4096), ("7B o", 4096, 4096), ("7B gate/up", 22016, 4096), ("7B down", 4096, 11008)):
    ws = [torch.randn(rows, cols, device="cuda", dtype=torch.float16) for _ in range(8)]
    x = torch.randn(cols, device="cuda", dtype=torch.float16)
    for w in ws: torch.mv(w, x)
    torch.cuda.synchronize()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        for w in ws: torch.mv(w, x)
    times = []
    for _ in range(9):
        a, b = torch.cuda.Event(True), torch.cuda.Event(True)
        a.record(); g.replay(); b.record(); b.synchronize()
        times.append(a.elapsed_time(b) * 1e3 / len(ws))
    print(f"| {name} | {sorted(times)[4]:.1f} |")
P
fi
note "done: $out"
[ $failed = 0 ]
