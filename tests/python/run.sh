#!/usr/bin/env bash
# run.sh PYTHON BUILD_DIR WORK_DIR: installs the Python package of a finished build into WORK_DIR/site and runs the
# Python tests on it from elsewhere.
set -eu
python=$1
build=$2
work=$(realpath -m "$3")
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$work"
mkdir -p "$work"
cmake --install "$build" --component python --prefix "$work/site" >"$work/install.log"
cd /
PYTHONPATH=$work/site exec "$python" -m pytest -q -p no:cacheprovider "$here"
