#!/usr/bin/env bash
# Everything that can be tested without a GPU: unit and property tests, the C header as C11, the installed package, exports,
# includes and formatting, then the unit tests again under the address and undefined-behaviour sanitizers.
set -eu
cd "$(dirname "$0")/.."
. scripts/dependencies.sh
need_packages "${build_packages[@]}" libgtest-dev
want_package clang-format-19 "the formatting check"

cmake --preset dev >/dev/null
cmake --build build/dev
ctest --preset dev -j "$(nproc)"

cmake --preset asan >/dev/null
cmake --build build/asan
# The sanitized run leaves out what is not about memory.
ctest --preset asan -j "$(nproc)" -LE 'check|package'
