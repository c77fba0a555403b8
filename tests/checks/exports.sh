#!/usr/bin/env bash
# exports.sh LIBRARY: the shared library defines the C ABI listed here and the public C++ API, nothing else.
set -u
library=$1
cd "$(dirname "$0")/../.." || exit 2
symbols=$(nm -DC --defined-only "$library" | cut -d' ' -f3-) || exit 2

expected_c=$(grep -ohE '\bshortconv_[a-z0-9_]+\(' include/shortconv/shortconv.h | tr -d '(' | sort -u)
actual_c=$(echo "$symbols" | grep -E '^shortconv_' | sort -u)
if [ -z "$expected_c" ] || [ "$expected_c" != "$actual_c" ]; then
  echo "C symbols differ from the functions of shortconv.h:"
  diff <(echo "$expected_c") <(echo "$actual_c")
  exit 1
fi
if echo "$symbols" | grep -vE '^shortconv(::|_)'; then
  echo "^ exported, but not ours"
  exit 1
fi
if echo "$symbols" | grep -E '^shortconv::(cpu|cuda|Checker|find_backend|kCpuBackend|kCudaBackend)'; then
  echo "^ exported, but internal"
  exit 1
fi
