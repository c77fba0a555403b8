#!/usr/bin/env bash
# run.sh BUILD_DIR WORK_DIR: installs a finished build into WORK_DIR/prefix, builds the consumer against it with
# find_package, runs it from elsewhere.
set -eu
build=$1
work=$2
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$work"
mkdir -p "$work"
cmake --install "$build" --prefix "$work/prefix" >"$work/install.log"
cmake -S "$here" -B "$work/build" -G Ninja -DCMAKE_PREFIX_PATH="$work/prefix" >"$work/configure.log"
cmake --build "$work/build"
cd /
"$work/build/consumer_cpp"
"$work/build/consumer_c"
