#!/usr/bin/env bash
# run.sh BUILD_DIR WORK_DIR: installs a finished build of the shared library into WORK_DIR/prefix, builds the consumers
# against it with find_package and with pkg-config, runs them from elsewhere.
set -eu
build=$1
work=$2
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
rm -rf "$work"
mkdir -p "$work"
cmake --install "$build" --prefix "$work/prefix" >"$work/install.log"
expect_installed "$work/prefix"
cmake -S "$here" -B "$work/build" -G Ninja -DCMAKE_PREFIX_PATH="$work/prefix" >"$work/configure.log"
cmake --build "$work/build"
use_pkg_config "$work/prefix"
libraries=$(pkg-config --variable=libdir shortconv)
cc -std=c11 -o "$work/by_pkg_config" "$here/consumer.c" $(pkg-config --cflags --libs shortconv) "-Wl,-rpath,$libraries"
cd /
"$work/build/consumer_cpp"
"$work/build/consumer_c"
"$work/by_pkg_config"
