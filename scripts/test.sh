#!/usr/bin/env bash
# Everything that can be tested without a GPU: unit and property tests, the C header as C11, the installed package, exports,
# includes and formatting, the Python package and its wheel, then the unit tests again under the address and
# undefined-behaviour sanitizers, and calls of several threads under the thread sanitizer.
set -eu
cd "$(dirname "$0")/.."
. scripts/dependencies.sh
need_packages "${build_packages[@]}" libgtest-dev
want_package clang-format-19 "the formatting check"

python=$PWD/build/python
options=(-DSHORTCONV_PYTHON=OFF)
if (need_packages python3-venv) >/dev/null 2>&1 && python_environment "$python" "${python_packages[@]}"; then
  options=(-DSHORTCONV_PYTHON=ON -DPython_EXECUTABLE="$python/bin/python"
           -Dtvm_ffi_DIR="$("$python/bin/python" -m tvm_ffi.config --cmakedir)")
else
  echo "skipped: the Python package and its wheel (apache-tvm-ffi, numpy, pytest and mypy are not available from PyPI)"
fi

# The tests on the emulated device run under the sanitizers, once; those for a GPU are built where one answers.
options+=(-DSHORTCONV_EMULATED_TESTS=OFF)
nvidia-smi >/dev/null 2>&1 || options+=(-DSHORTCONV_GPU_TESTS=OFF)

# The wheel is compiled from the same files as the library, and a repeated run from those of the run before, in whichever
# folder that was.
wheel_options=(SHORTCONV_CUDA=OFF SHORTCONV_DEVELOPER=ON)
want_package ccache "reuse of object files"
if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_CUDA_COMPILER_LAUNCHER=ccache CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=true
fi

cmake --preset dev "${options[@]}" >/dev/null
cmake --build build/dev
ctest --preset dev -j "$(nproc)"
if [ "${options[0]}" = -DSHORTCONV_PYTHON=ON ]; then
  scripts/wheel.sh build/wheel-cpu "${wheel_options[@]}" || [ $? -eq 77 ]
fi

cmake --preset asan >/dev/null
cmake --build build/asan
# The sanitized run leaves out the tests that are not about memory, and random cases of the reference backend.
ctest --preset asan -j "$(nproc)" -LE 'check|package' -E '^verify\.Case\.|^verify\.Check.*/reference'

cmake --preset tsan >/dev/null
cmake --build --preset tsan
ctest --preset tsan
