#!/usr/bin/env bash
# example.sh DOCUMENT SOURCE: the document's first C++ block is SOURCE, which is compiled and run, without its first
# line.
set -u
cd "$(dirname "$0")/../.." || exit 2
block=$(awk '$0 == "```cpp" {inside = 1; next} /^```/ {if (inside) exit} inside' "$1")
[ -n "$block" ] || { echo "$1 has no C++ block"; exit 1; }
diff <(echo "$block") <(tail -n +2 "$2") || { echo "^ $1 and $2 differ"; exit 1; }
