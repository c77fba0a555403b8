#!/usr/bin/env bash
# The layers of docs/design.md: include <- src/core <- src/reference, src/cpu, src/cuda; src/op between core and the backends.
# Prints each include that points the wrong way and fails if there is one.
set -u
cd "$(dirname "$0")/../.." || exit 2
found=0

# forbid FOLDER PATTERN: no include in FOLDER may match PATTERN.
forbid() {
  if grep -rnE "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($2)" "$1" 2>/dev/null; then
    echo "^ not allowed in $1"
    found=1
  fi
}

framework='torch|ATen|c10|tvm|pybind11|nanobind|Python\.h'
forbid include "cuda|hwy|omp|core/|op/|cpu/|reference/|$framework"
forbid src/core "cuda|hwy|omp|op/|cpu/|reference/|$framework"
forbid src/op "cuda|hwy|omp|cpu/|reference/|$framework"
forbid src/reference "cuda|hwy|omp|op/|cpu/|$framework"
forbid src/cpu "cuda|omp|reference/|$framework"
forbid src/cuda "hwy|omp|cpu/|reference/|$framework"
forbid bindings "cuda/|hwy|omp|core/|op/|cpu/|reference/|torch|ATen|c10|pybind11|nanobind|Python\.h"
forbid tools "hwy|omp|op/|cpu/|reference/|$framework"
# Device code in .cuh, its instantiation in .cu, everything that decides in plain C++.
if grep -lE '__global__|__device__' src/cuda/*.hpp src/cuda/host/*; then
  echo "^ device code outside of .cuh and .cu"
  found=1
fi
[ -d include/shortconv ] && [ -d src/core ] || { echo "not in the source tree"; exit 2; }
exit $found
