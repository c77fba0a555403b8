#!/usr/bin/env bash
# The Python package on a GPU, from wheels that are unpacked into a folder, where there is no pip; a short table last.
#   scripts/gpu_python.sh WHEELS [ENGINE=FILE...]
# WHEELS is a folder of wheels: shortconv, apache-tvm-ffi, and whatever else this Python lacks (pytest, einops,
# causal-conv1d's rivals). ENGINE=FILE is a test file of causal_conv1d, vllm or sglang, which runs against ours
# (scripts/engine_tests.py). RESULTS (environment) is a file for the figures.
set -uo pipefail
cd "$(dirname "$0")/.."
wheels=$1
shift
theirs=()
for one in "$@"; do theirs+=("${one%%=*}=$(realpath "${one#*=}")"); done
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
rm -f "${RESULTS:=$PWD/bench/results/gpu/rivals.json}"
for wheel in "$wheels"/*.whl; do "$python" -m zipfile -e "$wheel" "$site" || exit 2; done
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
tests=$PWD/tests/python
scripts=$PWD/scripts
rivals=$PWD/bench/rivals
results=$RESULTS
mkdir -p "$(dirname "$results")"
"$python" -c 'import json, shortconv, torch
print(shortconv.__file__, shortconv.__version__, "torch", torch.__version__)
print(json.dumps(shortconv.capabilities()["backends"]))' || exit 2

names=() outcomes=()
# step NAME COMMAND...: runs it, keeps its last line for the table.
step() {
  local name=$1 log
  shift
  log=$(mktemp)
  echo "== $name"
  "$@" 2>&1 | tee "$log"
  local rc=${PIPESTATUS[0]}
  names+=("$name")
  outcomes+=("$([ "$rc" -eq 0 ] && echo passed || echo "FAILED ($rc)"): $(grep -v '^$' "$log" | tail -n 1 | cut -c 1-100)")
  rm -f "$log"
}
pytest=("$python" -m pytest -q -p no:cacheprovider --tb=short --maxfail=20)

cd /
export SHORTCONV_TEST_ARRAYS=numpy,torch-cpu,torch-cuda
step "operators, torch" "${pytest[@]}" "$tests"/test_{operators,interface,torch,arrays,check,padded_batches,groups}.py
step "training" "${pytest[@]}" "$tests"/test_{backward,training,training_groups}.py
for name in causal_conv1d sglang vllm fla messages; do
  step "as $name" "${pytest[@]}" -k cuda "$tests/test_compat_$name.py"
done
if "$python" -c 'import transformers' 2>/dev/null; then
  step "transformers" "${pytest[@]}" -k cuda "$tests/test_transformers.py"
fi
for one in "${theirs[@]}"; do
  step "own tests of ${one%%=*}" "$python" "$scripts/engine_tests.py" "${one%%=*}" "${one#*=}" --maxfail=20
done
step "rivals" "$python" "$rivals/run.py" --json "$results"
step "rivals, fronts" "$python" "$rivals/run.py" --fronts --json "${results%.json}-fronts.json"

echo
for index in "${!names[@]}"; do printf '%-28s %s\n' "${names[$index]}" "${outcomes[$index]}"; done
[ -f "$results" ] && "$python" - "$results" <<'END'
import json, sys
rows = json.load(open(sys.argv[1]))["rows"]
print("\nhost time, us, of a call (launch included):")
for case in ("decode 64 x 8192", "8192 x 8192, 64 x 128"):
    found = [f'{row["rival"]} {row["host_us"]:.1f}' for row in rows if row["case"] == case and "host_us" in row]
    print(f"  {case}: " + ", ".join(found))
END
for outcome in "${outcomes[@]}"; do case $outcome in FAILED*) exit 1 ;; esac; done
