#!/usr/bin/env bash
# readme.sh SHORTCONV: the README's quick starts are the programs that tests/package compiles and runs, and its support
# table is the one the library prints.
set -u
shortconv=$1
cd "$(dirname "$0")/../.." || exit 2
status=0

# block LANGUAGE: the first code block of that language.
block() { awk -v open="\`\`\`$1" '$0 == open {inside = 1; next} /^```/ {if (inside) exit} inside' README.md; }

diff <(block cpp) <(tail -n +2 tests/package/consumer.cpp) || { echo "^ C++ quick start"; status=1; }
diff <(block c) <(tail -n +2 tests/package/consumer.c) || { echo "^ C quick start"; status=1; }
diff <(grep -A100 '^| | supported |' README.md | awk '!/^\|/ {exit} {print}') \
  <("$shortconv" info --support-table) || { echo "^ support table"; status=1; }
exit $status
