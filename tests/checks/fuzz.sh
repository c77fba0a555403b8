#!/usr/bin/env bash
# The harness of the C ABI in tests/fuzz compiles. It is built by hand, with clang; exit 77 (skipped) where that is not installed.
set -u
cd "$(dirname "$0")/../.." || exit 2
command -v clang++ >/dev/null || { echo "clang++ is not installed"; exit 77; }
clang++ -std=c++20 -fsyntax-only -Iinclude tests/fuzz/capi_fuzzer.cpp tests/fuzz/capi_groups.cpp
