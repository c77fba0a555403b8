#!/usr/bin/env bash
# Formatting as clang-format 19 has it; other versions disagree with it. Exit 77 (skipped) where it is not installed.
set -u
cd "$(dirname "$0")/../.." || exit 2
command -v clang-format-19 >/dev/null || { echo "clang-format-19 is not installed"; exit 77; }
mapfile -t files < <(find include src tools tests bindings -regex '.*\.\(cpp\|hpp\|h\|c\|cu\|cuh\)')
[ "${#files[@]}" -gt 0 ] || { echo "found no source files"; exit 1; }
clang-format-19 --dry-run --Werror "${files[@]}"
