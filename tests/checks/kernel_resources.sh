#!/usr/bin/env bash
# kernel_resources.sh LIBRARY: no kernel uses more registers or stack than tests/checks/kernel_resources.txt records, as
# they decide how many warps are resident. To accept a change: scripts/kernel_report.py LIBRARY --write TABLE.
# cuobjdump is the one on the PATH, of the CUDA toolkit or, if that lacks it, of PyPI; exit 77 (skipped) without any.
set -u
library=$(realpath "$1")
cd "$(dirname "$0")/../.." || exit 2
. scripts/dependencies.sh
if [ -z "${CUOBJDUMP:-}" ]; then
  CUOBJDUMP=$(command -v cuobjdump || ls /usr/local/cuda/bin/cuobjdump 2>/dev/null)
fi
if [ -z "$CUOBJDUMP" ]; then
  python_environment build/cuobjdump nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm ||
    { echo "cuobjdump is neither installed nor available from PyPI"; exit 77; }
  CUOBJDUMP=$(find "$PWD/build/cuobjdump" -name cuobjdump -type f | head -n 1)
  chmod +x "$CUOBJDUMP"
fi
export CUOBJDUMP
exec python3 scripts/kernel_report.py "$library" --check tests/checks/kernel_resources.txt
