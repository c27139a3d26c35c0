#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under nine minutes and without any file from elsewhere: builds, the sanitizers, every
# kernel and the whole backend against the CPU, greedy text, then timings. Prints tables and writes RESULTS/DATE-GPU.md.
# tests/test_gpu_check.py runs all of it where there is no GPU.
#
#   tests/gpu_check.sh                  build in build-gpu and check
#   tests/gpu_check.sh prepare FOLDER   on a machine that has what building needs: programs and the libraries they want
#   tests/gpu_check.sh run FOLDER       on the GPU machine: no building, the prepared programs
#
# Each step has a limit of its own and none stops the others. The exit status is 1 when one failed, 77 where there is no GPU.
# Variables: JOBS, PITH_CUDA_ARCHS (native; "90a" to prepare for an H100 or H200), WORK (where models of up to 25 GB are written, default
# a new folder in memory where that has room, else under /tmp), RESULTS (cuda/results), SECONDS_MAX (520), and
# CONVERT (options of the conversions that are compared, --effort fast) and
# PARTS, to spread it over several calls, of which those after the first add to the file with ADD=1. In this order by default:
PARTS=${PARTS:-correct convert compare:llama-2-7b kernels sanitize llama-3-8b tinyllama-1.1b big:llama-2-70b torch}
set -uo pipefail
cd "$(dirname "$0")/.."
mode=${1:-check} folder=${2:-build-gpu/gpu}
SECONDS_MAX=${SECONDS_MAX:-520} RESULTS=${RESULTS:-cuda/results} CONVERT=${CONVERT:---effort fast}
export PATH=$PATH:/usr/local/cuda/bin
programs="gpu_kernels gpu_backend gpu_calibration gpu_families gpu_bench"
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
  [ -s "$folder/demo.pith" ] || "$folder/pith" convert models/demo -o "$folder/demo.pith" --effort fast --restart >/dev/null 2>&1
}

# limited SECONDS COMMAND...: at most so long, and never beyond the end; 124 when it was stopped or had no time at all.
limited() {
  local limit=$1 room
  shift
  room=$(left)
  [ "$limit" -gt "$room" ] && limit=$room
  [ "$limit" -lt 3 ] && return 124
  timeout "$limit" "$@"
}

# check SECONDS NAME COMMAND...: a row of a table of checks; its failure is remembered, its output kept.
check() {
  local limit=$1 name=$2
  shift 2
  local log="$WORK/log.$(echo "$name" | tr -c 'a-z0-9\n' _)"
  limited "$limit" "$@" >"$log" 2>&1
  local code=$?
  if [ $code = 0 ]; then echo "| $name | ok: $(grep -vE '^\s*$' "$log" | tail -1 | cut -c1-120) |"
  elif [ $code = 124 ]; then echo "| $name | stopped for want of time: $(grep -vE '^\s*$' "$log" | tail -1 | cut -c1-120) |"
  else
    failed=1
    echo "| $name | FAILED ($code) |"
    tail -30 "$log" >&2
  fi
}

[ "$mode" = prepare ] && { build; du -sh "$folder"; exit 0; }
[ "$mode" = check ] && { note "building"; build; }
[ -x "$folder/gpu_bench" ] || { echo "gpu_check: no programs in $folder" >&2; exit 2; }
if [ -d "$folder/lib" ]; then
  export LD_LIBRARY_PATH=$(realpath "$folder/lib")
  # A system's own copy is preferred where the programs run with it.
  env -u LD_LIBRARY_PATH "$folder/pith" doctor >/dev/null 2>&1 && unset LD_LIBRARY_PATH
fi
pith=$folder/pith
gpu=$("$pith" doctor | sed -n 's/^gpu *//p')
case $gpu in cuda:*) ;; *) echo "SKIP: $gpu"; [ "${PITH_NO_SKIP:-}" = 1 ] && exit 1; exit 77 ;; esac
in_memory=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 {print $4}')
[ "${in_memory:-0}" -gt 50000000 ] && in_memory=/dev/shm || in_memory=/tmp
own_work=
[ -z "${WORK:-}" ] && WORK=$(mktemp -d -p $in_memory) && own_work=$WORK
trap '[ -n "$own_work" ] && rm -rf "$own_work"' EXIT
name=$(echo "$gpu" | sed -E 's/^cuda:0 ([^,]*),.*/\1/; s/[^A-Za-z0-9]+/-/g')
mkdir -p "$RESULTS"
out=$RESULTS/$(date +%Y-%m-%d)-$name.md
if [ -n "${ADD:-}" ]; then exec > >(tee -a "$out"); else
  exec > >(tee "$out")
  printf '# %s, %s\n\nCommit %s. %s. By tests/gpu_check.sh.\n' "$name" "$(date +%Y-%m-%d)" \
    "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "$gpu"
fi

part_correct() {
  printf '\n## Correctness\n\n| check | result |\n|---|---|\n'
  check 50 "kernels against the CPU reference, outputs poisoned" "$folder/gpu_kernels"
  check 50 "backend against the CPU backend" "$folder/gpu_backend"
  check 40 "every family against the reference's logits" "$folder/gpu_families" "the CUDA backend*,the forward pass of calibration*GPU"
  local demo=$folder/demo.pith
  [ -s "$demo" ] || { failed=1; echo "| demo model | FAILED: no $demo |"; return; }
  text() { limited 20 "$pith" run "$demo" -p "Once upon a time" -n 48 --temp 0 "${@:2}" >"$WORK/text.$1" 2>/dev/null; }
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
  # Over many tokens rounding does not add up: the perplexities of a text may differ by 0.5 %.
  perplexity() { limited 30 "$pith" eval "$demo" --text README.md --max-tokens 2000 --ctx 256 --json "$@" 2>/dev/null | sed -n 's/.*"ppl": *\([0-9.]*\).*/\1/p' | head -1; }
  local cpu cuda
  cpu=$(perplexity --device cpu) cuda=$(perplexity --device cuda)
  if awk "BEGIN {exit !(${cpu:-0} > 0 && ${cuda:-0} / ${cpu:-1} > 0.995 && ${cuda:-0} / ${cpu:-1} < 1.005)}"; then
    echo "| perplexity of README.md, CPU and GPU | ok: $cpu and $cuda |"
  else failed=1; echo "| perplexity of README.md, CPU and GPU | FAILED: ${cpu:-none} and ${cuda:-none} |"; fi
}

# Calibration's products: the demo model made on the CPU and twice on the GPU.
part_convert() {
  printf '\n## Conversion\n\n| check | result |\n|---|---|\n'
  check 50 "products and conversions against the CPU's" "$folder/gpu_calibration"
  make_demo() { # FILE DEVICE
    local begin=$SECONDS
    limited 100 "$pith" convert models/demo -o "$WORK/$1.pith" $CONVERT --restart --device $2 >"$WORK/made" 2>&1 || { tail -3 "$WORK/made" >&2; return 1; }
    echo "| demo model on $2, $(sed -n 's/^time: //p' "$WORK/made") | $((SECONDS - begin)) s |"
  }
  if ! { "$pith" convert models/demo -o "$WORK/16.pith" --bits 16 --restart >/dev/null 2>&1 && make_demo cpu cpu && make_demo cuda cuda && make_demo again cuda; }; then
    failed=1
    echo "| conversion of the demo model | FAILED or no time left |"
    return
  fi
  if cmp -s "$WORK/cuda.pith" "$WORK/again.pith"; then echo "| two conversions on the GPU | ok: the same bytes |"
  else failed=1; echo "| two conversions on the GPU | FAILED: they differ |"; fi
  # How far each is from 16 bits: sums in another order may change codes, not what they are worth.
  against() { limited 100 "$pith" eval "$WORK/$1.pith" --against "$WORK/16.pith" --text README.md --max-tokens 4000 --ctx 256 --json --device cpu 2>/dev/null | sed -n 's/.*"kl_mean": *\([0-9.e-]*\).*/\1/p' | head -1; }
  local cpu cuda
  cpu=$(against cpu) cuda=$(against cuda)
  if awk "BEGIN {exit !(${cpu:-0} > 0 && ${cuda:-0} / ${cpu:-1} > 0.9 && ${cuda:-0} / ${cpu:-1} < 1.1)}"; then
    echo "| KL divergence from 16 bits, made on CPU and GPU | ok: $cpu and $cuda |"
  else failed=1; echo "| KL divergence from 16 bits, made on CPU and GPU | FAILED: ${cpu:-none} and ${cuda:-none} |"; fi
}

part_sanitize() {
  printf '\n## Sanitizers\n\n| check | result |\n|---|---|\n'
  command -v compute-sanitizer >/dev/null || { echo "| compute-sanitizer | not found |"; return; }
  san() { check "$1" "$2, $3" compute-sanitizer --error-exitcode 9 --tool "$2" "${@:4}"; }
  san 35 memcheck kernels "$folder/gpu_kernels"
  san 35 racecheck kernels "$folder/gpu_kernels"
  san 35 memcheck "products of calibration" "$folder/gpu_calibration" "products*"
  san 25 synccheck kernels "$folder/gpu_kernels"
  san 25 memcheck backend "$folder/gpu_backend" "cuda kernels of every*"
  san 35 memcheck "experts and split models" "$folder/gpu_backend" "cuda logits*,the first layers*"
}

# One table after another: one that fails or lasts too long loses its own rows only.
part_kernels() {
  printf '\n# Kernels alone\n\n'
  for table in device matvec costs gemm float plain attention gemm-costs cuts; do
    note "table $table"
    limited 40 "$folder/gpu_bench" $table
    case $? in 0) ;; 124) printf '\n(%s: stopped for want of time)\n' $table ;; *) failed=1; printf '\n(%s: FAILED)\n' $table ;; esac
  done
}

models_head() {
  [ -n "${models_begun:-}" ] && return
  models_begun=1
  printf '\n# Models (pith synth, pith bench)\n\n| shape | bits | device memory | ready ms | prompt | t/s prompt | context | t/s generation | weights GB/s |\n|---|---|---|---|---|---|---|---|---|\n'
}
field() { sed -n "s/.*\"$1\": *\([0-9.]*\).*/\1/p" "$WORK/bench"; }
# model SHAPE BITS PROMPTS: a row a prompt; in $file for the rows that follow.
model() {
  models_head
  [ "$(left)" -lt 25 ] && { echo "| $1 | $2 | not run: no time left | | | | | | |"; return 1; }
  note "$1 at $2 bits"
  file=$WORK/$1-$2.pith
  limited 110 "$pith" synth --shape "$1" --bits "$2" -o "$file" >/dev/null 2>&1 || { rm -f "$file"; echo "| $1 | $2 | no file | | | | | | |"; return 1; }
  local bytes prompt
  bytes=$("$pith" plan "$file" --device cuda --chunk 1024 --json 2>/dev/null | sed -n 's/.*"total_bytes": *\([0-9]*\).*/\1/p')
  for prompt in $3; do
    limited 60 "$pith" bench "$file" --device cuda --chunk 1024 -p $prompt -n 64 --repeat 3 --json >"$WORK/bench" 2>"$WORK/bench.err"
    case $? in
      0) echo "| $1 | $2 | $(awk "BEGIN {printf \"%.2f GB\", ${bytes:-0} / 1e9}") | $(field open_ms) | $(field prompt_tokens) | $(field prompt_tps) | $(field prompt_tokens) | $(field generation_tps) | $(field gb_per_s) |" ;;
      124) echo "| $1 | $2 | stopped for want of time | | $prompt | | | | |" ;;
      *) failed=1; echo "| $1 | $2 | FAILED: $(tail -1 "$WORK/bench.err" | cut -c1-100) | | $prompt | | | | |" ;;
    esac
  done
}
# A shape with the other pipelines beside the default one.
part_compare() {
  local kernels
  if model "$1" 2.85 "16 512 2048 4096"; then
    for kernels in registers registers-sync async async-sync bulk-sync; do
      limited 60 "$pith" bench "$file" --device cuda --chunk 1024 --kernels $kernels -p 512 -n 64 --json >"$WORK/bench" 2>"$WORK/bench.err"
      case $? in
        0) echo "| $1 | 2.85, $kernels | | | 512 | $(field prompt_tps) | 512 | $(field generation_tps) | $(field gb_per_s) |" ;;
        124) echo "| $1 | 2.85, $kernels | stopped for want of time | | 512 | | | | |" ;;
        *) failed=1; echo "| $1 | 2.85, $kernels | FAILED: $(tail -1 "$WORK/bench.err" | cut -c1-100) | | 512 | | | | |" ;;
      esac
    done
    rm -f "$file"
  fi
  model "$1" 16 "16 512 2048 4096" && rm -f "$file"
}
part_shape() {
  local bits
  for bits in 2.85 16; do model "$1" $bits "16 512 2048 4096" && rm -f "$file"; done
}
part_big() { model "$1" 2.85 "16 512" && rm -f "$file"; }

part_torch() {
  printf "\n# PyTorch's fp16 matrix-vector product\n\n"
  python3 -c 'import torch' 2>/dev/null || { echo "PyTorch is not here."; return; }
  limited 40 python3 - <<'P' || { failed=1; echo "(failed)"; }
import torch
print("| shape | us |\n|---|---|")
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
}

for part in $PARTS; do
  note "$part"
  case $part in
    correct | convert | sanitize | kernels | torch) part_$part ;;
    compare:* | big:*) part_${part%%:*} "${part#*:}" ;;
    *) part_shape "$part" ;;
  esac
done
note "done: $out"
[ $failed = 0 ]
