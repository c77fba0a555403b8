#!/usr/bin/env bash
# Formatting as clang-format 19 has it; other versions disagree with it. Exit 77 (skipped) where it is not installed.
set -u
cd "$(dirname "$0")/../.." || exit 2
command -v clang-format-19 >/dev/null || { echo "clang-format-19 is not installed"; exit 77; }
mapfile -t files < <(git ls-files '*.cpp' '*.hpp' '*.h' '*.c' '*.cu' '*.cuh')
[ "${#files[@]}" -gt 0 ] || { echo "no source files listed by git"; exit 1; }
clang-format-19 --dry-run --Werror "${files[@]}"
