#!/usr/bin/env bash
# Everything that needs a GPU: builds, tests, sanitizers, benchmarks; a short table last.
#   scripts/gpu.sh [PARTS] [RESULTS]
# PARTS are some of: build tests sanitize bench replay (default: all, with commas), RESULTS is where the JSON files go
# (default: bench/results/gpu). SHORTCONV_BUILD names the build folder (default: build/dev). Tables: scripts/performance.py and
# scripts/costs.py.
set -euo pipefail
cd "$(dirname "$0")/.."
parts=,${1:-build,tests,sanitize,bench,replay},
results=${2:-bench/results/gpu}
build=${SHORTCONV_BUILD:-build/dev}
shortconv=$build/tools/shortconv
mkdir -p "$results"
has() { case $parts in *,$1,*) return 0 ;; *) return 1 ;; esac; }

if has build; then
  . scripts/dependencies.sh
  need_packages "${build_packages[@]}" libgtest-dev
  cmake --preset dev -B "$build" -DCMAKE_CUDA_ARCHITECTURES=native >/dev/null
  cmake --build "$build"
fi
commit=${SHORTCONV_COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader)
echo "$gpu, commit $commit"
printf '{"gpu": "%s", "commit": "%s", "command": "scripts/gpu.sh %s"}\n' "$gpu" "$commit" "${1:-}" >"$results/run.json"

if has tests; then
  "$build/tests/gpu/shortconv_gpu_tests" --gtest_brief=1
  "$build/tests/tools/shortconv_tools_tests" --gtest_brief=1 --gtest_filter='Gpu*'
  "$shortconv" verify --backend cuda --cases 20000
fi

if has sanitize; then
  for tool in memcheck racecheck initcheck synccheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 \
      "$shortconv" verify --backend cuda --cases 150 --seed 7 | tail -n 2
    compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 "$build/tests/gpu/shortconv_gpu_tests" \
      --gtest_brief=1 --gtest_filter='GpuDrafts.G*:GpuDrafts.B*:Commits.A*:Commits.B*:CheckedMode.S*:CheckedMode.D*' | tail -n 2
  done
fi

# bench NAME ARGUMENTS...: one file of results, and its table on the terminal.
bench() {
  local name=$1
  shift
  echo "== $name: shortconv bench --backend cuda $*"
  "$shortconv" bench --backend cuda --json "$results/$name.json" "$@"
}
main=(--shape 8192x8192 8x1024 64x128 256x32 skewed decode-256)
if has bench; then
  mapfile -t gradients < <("$shortconv" bench --list | awk '$1 ~ /^back-/ && $1 !~ /^back-(front|flat|kda|mamba2)-/ { print $1 }')
  mapfile -t front_gradients < <("$shortconv" bench --list | awk '$1 ~ /^back-(front|flat|kda|mamba2)-/ { print $1 }')
  mapfile -t fronts < <("$shortconv" bench --list | awk '$1 ~ /^(front|flat|kda|mamba2)-/ { print $1 }')
  mapfile -t short < <("$shortconv" bench --list | awk '$1 ~ /^short-/ { print $1 }')
  mapfile -t others < <("$shortconv" bench --list |
    awk '$1 !~ /^(back|front|flat|kda|mamba2|short|in-place)-/ { print $1 }')
  bench bf16 --schedule flat --shape "${others[@]}"
  bench overlapped --programmatic-launch --shape "${others[@]}"
  bench schedules --schedule sequence-grid,block-list,flat --shape 8192x8192 8x1024 64x128 256x32 1024x8 skewed mixed \
    8192x2048 8x1024x2048 64x128x2048 4096x4096 1024x8192 64x4 16x4
  bench warm --mode warm --shape 1024x8192 64x4 16x4 decode-1 decode-8 decode-32 decode-64
  bench slots-in-order --slots-in-order --shape "${others[@]}"
  bench gates --width 3 --activation none --programmatic-launch --shape gated-8192x8192 gated-8x1024 gated-64x128 \
    gated-64x1 gated-256x1
  bench gates-width-7 --width 7 --activation none --programmatic-launch --shape gated-8192x8192 gated-8x1024 \
    gated-64x128 gated-64x1 gated-256x1
  bench groups --shape "${fronts[@]}"
  bench groups-overlapped --programmatic-launch --shape "${fronts[@]}"
  bench bias --bias "${main[@]}"
  for width in 2 3 5 6 7 8; do bench "width-$width" --width "$width" "${main[@]}"; done
  for dtype in f16 f32; do bench "$dtype" --dtype "$dtype" "${main[@]}" decode-256-ds; done
  bench f32-states --state-dtype f32 "${main[@]}" spec-64x4 tree-64x7 64x128-kept64
  bench f32-states-weights --state-dtype f32 --weight-dtype f32 "${main[@]}"
  bench short --programmatic-launch --shape 8192x8192 "${short[@]}" decode-64 decode-256 decode-256x2048
  bench general --weight-dtype f16 "${main[@]}" spec-64x4 in-place-8192x8192 in-place-64x128 in-place-256x32 in-place-64x4
  for width in 12 64; do
    bench "general-width-$width" --width "$width" --shape 8192x8192 64x128 decode-256 in-place-8192x8192
  done
  bench backward --shape "${gradients[@]}"
  bench backward-fronts --shape "${front_gradients[@]}"
  for dtype in f16 f32; do bench "backward-$dtype" --dtype "$dtype" --shape "${gradients[@]}"; done
  bench backward-f32-weights --weight-dtype f32 --bias --shape "${gradients[@]}"
  bench backward-gates --width 7 --activation none --shape back-8192x2048 back-gated-8192x2048
  bench backward-general --weight-dtype f16 --shape back-8192x8192 back-64x128 back-skewed back-channel-major \
    back-gated-8192x2048
  bench backward-general-width-7 --width 7 --activation none --shape back-channel-major back-channel-64x128
  for width in 12 64; do
    bench "backward-general-width-$width" --width "$width" --shape back-8192x8192 back-64x128 back-channel-major
  done
  for pitch in 1.5 2; do bench "pitch-$pitch" --pitch "$pitch" "${main[@]}"; done
  echo "== costs: shortconv costs --repeats 20"
  "$shortconv" costs --repeats 20 --json "$results/costs.json"
fi

if has replay; then
  for run in extend draft chain tree prefix; do
    case $run in
      extend) more=() ;;
      draft) more=(--draft 4) ;;
      chain) more=(--spec 3) ;;
      tree) more=(--tree 2,2) ;;
      prefix) more=(--spec 3 --prefix-cache 16) ;;
    esac
    [ $run = prefix ] || more+=(--compare block-list,sequence-grid,flat)
    echo "== replay of a serving run: $run"
    "$shortconv" replay --backend cuda --preset gsm8k --limit 400 --layers 4 --check 8 "${more[@]}" \
      --json "$results/replay-$run.json"
  done
fi

if has bench; then
  echo
  echo "results of $results/bf16.json, cold:"
  python3 - "$results/bf16.json" <<'END'
import json, sys
for row in json.load(open(sys.argv[1]))["rows"]:
    print(f'{row["case"]:<18} {row["run_us"]:>8.2f} us  copy {row["copy_us"]:>8.2f}  x {row["ratio"]:.3f}  '
          f'{row["run_us"] - row["copy_us"]:+.2f} us')
END
fi
