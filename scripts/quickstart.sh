#!/usr/bin/env bash
# From a fresh checkout to a verified serving run: installs what is missing, builds, replays the lengths of the 1,319
# GSM8K test questions through two layers of Qwen3-Next's convolution, writes report.html.
# Arguments are passed to `shortconv replay`: scripts/quickstart.sh --preset gsm8k --model lfm2
# The CUDA backend is built where a GPU answers; SHORTCONV_CUDA=ON or OFF in the environment decides instead.
set -eu
cd "$(dirname "$0")/.."
. scripts/dependencies.sh
need_packages "${build_packages[@]}"

if [ -z "${SHORTCONV_CUDA:-}" ]; then
  SHORTCONV_CUDA=OFF
  if nvidia-smi >/dev/null 2>&1; then
    SHORTCONV_CUDA=ON
  else
    echo "no GPU answers: building without the CUDA backend (SHORTCONV_CUDA=ON scripts/quickstart.sh builds it)"
  fi
fi
architecture=90-real # one is enough for a first look
nvidia-smi >/dev/null 2>&1 && architecture=native
cmake --preset release -DSHORTCONV_CUDA="$SHORTCONV_CUDA" -DCMAKE_CUDA_ARCHITECTURES=$architecture >/dev/null
cmake --build build/release

shortconv=build/release/tools/shortconv
"$shortconv" info
[ "$#" -gt 0 ] || set -- --preset gsm8k --compare block-list,sequence-grid
"$shortconv" replay "$@" --json build/release/replay.json
"$shortconv" report build/release/replay.json -o build/release/report.html
echo "report: build/release/report.html"
