#!/usr/bin/env bash
# From a fresh checkout to a verified serving run: installs what is missing, builds, replays the lengths of the 1,319
# GSM8K test questions through two layers of Qwen3-Next's convolution, writes report.html.
# Arguments are handed to `shortconv replay`: scripts/quickstart.sh --preset gsm8k --model lfm2
set -eu
cd "$(dirname "$0")/.."
. scripts/dependencies.sh
need_packages "${build_packages[@]}"

architecture=90-real # one is enough for a first look
nvidia-smi >/dev/null 2>&1 && architecture=native
cmake --preset release -DCMAKE_CUDA_ARCHITECTURES=$architecture >/dev/null
cmake --build build/release

shortconv=build/release/tools/shortconv
"$shortconv" info
[ "$#" -gt 0 ] || set -- --preset gsm8k --compare block-list,sequence-grid
"$shortconv" replay "$@" --json build/release/replay.json
"$shortconv" report build/release/replay.json -o build/release/report.html
echo "report: build/release/report.html"
