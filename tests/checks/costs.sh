#!/usr/bin/env bash
# costs.sh SHORTCONV: docs/costs.md is what scripts/costs.py writes from the committed measurement, its kernels are those of
# today, and no row exceeds its bound that the page does not list. Exit 77 (skipped) without a measurement.
set -u
shortconv=$(realpath "$1")
cd "$(dirname "$0")/../.." || exit 2
exec python3 scripts/costs.py --check "$shortconv"
