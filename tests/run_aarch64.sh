#!/bin/sh
# Cross-compiles the kernels and their test for aarch64 and runs them under qemu-user: the NEON kernels against the
# scalar reference, bit for bit. Prints SKIP and succeeds where one is missing (Debian: g++-aarch64-linux-gnu, qemu-user),
# or fails with PITH_NO_SKIP=1.
# usage: tests/run_aarch64.sh [BUILD_FOLDER]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/build/aarch64}
for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
  command -v $tool >/dev/null || { echo "SKIP: $tool is not installed"; [ "${PITH_NO_SKIP:-}" != 1 ]; exit; }
done
mkdir -p "$out/include"
# Header-only packages of the host, without the host's own headers beside them.
for package in catch2 fmt nlohmann; do ln -sfn /usr/include/$package "$out/include/$package"; done
flags="-std=c++20 -O2 -ffp-contract=off -static -DFMT_HEADER_ONLY -DCATCH_CONFIG_NO_POSIX_SIGNALS -I$root -isystem $out/include"
objects=
for source in tests/main tests/test_kernels format/q24 format/q24_check runtime/cpu/arena runtime/cpu/dispatch \
  runtime/cpu/kv_cache runtime/cpu/scalar runtime/cpu/neon; do
  object=$out/$(echo $source | tr / _).o
  extra=
  [ $source = runtime/cpu/neon ] && extra=-march=armv8.2-a+dotprod
  [ "$object" -nt "$root/$source.cpp" ] || aarch64-linux-gnu-g++ $flags $extra -c "$root/$source.cpp" -o "$object"
  objects="$objects $object"
done
aarch64-linux-gnu-g++ $flags $objects -o "$out/test_kernels"
qemu-aarch64 -cpu max "$out/test_kernels"
