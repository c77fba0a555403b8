#!/usr/bin/env bash
# subproject.sh WORK_DIR: builds a project that contains this one, and installs the static library from there. Then links
# C programs to the static library without a C++ compiler, with find_package and with pkg-config, and runs them.
set -eu
work=$1
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
rm -rf "$work"
mkdir -p "$work"
# Neither optimised nor with every instruction set, for a short build.
cmake -S "$here/parent" -B "$work/parent" -G Ninja -DCMAKE_CXX_FLAGS="-O0 -DHWY_COMPILE_ONLY_STATIC" \
  -DCMAKE_INSTALL_PREFIX=/usr/local >"$work/parent.log" 2>&1 || { cat "$work/parent.log"; exit 1; }
cmake --build "$work/parent"
cmake --install "$work/parent" --prefix "$work/prefix" >"$work/install.log"
expect_installed "$work/prefix"
cmake -S "$here/c_only" -B "$work/c_only" -G Ninja -DCMAKE_PREFIX_PATH="$work/prefix" >"$work/c_only.log"
cmake --build "$work/c_only"
use_pkg_config "$work/prefix"
cc -std=c11 -o "$work/by_pkg_config" "$here/consumer.c" $(pkg-config --static --cflags --libs shortconv)
cd /
"$work/parent/consumer_cpp"
"$work/c_only/consumer_c"
"$work/by_pkg_config"
