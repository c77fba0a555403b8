# Sourced by the other scripts. need_packages NAME...: makes sure that these Debian or Ubuntu packages are installed;
# installs them where that is allowed without asking, otherwise prints the line to type and ends the script.
need_packages() {
  local missing=() name
  for name in "$@"; do
    dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ "${#missing[@]}" -eq 0 ] && return 0
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      echo "Missing packages. Please run:" >&2
      echo "  sudo apt-get install ${missing[*]}" >&2
      exit 3
    fi
    as_root=(sudo -n)
  fi
  echo "installing: ${missing[*]}"
  local log
  log=$(mktemp)
  if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "Could not install: ${missing[*]}" >&2
    exit 3
  fi
  rm -f "$log"
}

# want_package NAME PURPOSE: the same for an optional package; prints what is skipped without it.
want_package() {
  (need_packages "$1") >/dev/null 2>&1 || echo "skipped: $2 ($1 is not available)"
}

build_packages=(g++ cmake ninja-build pkg-config libhwy-dev libcli11-dev libfmt-dev nlohmann-json3-dev)

# python_environment FOLDER PACKAGE...: a virtual environment with these packages from PyPI, kept for the next call.
# Fails silently where they are not available.
python_environment() {
  local folder=$1
  shift
  [ -x "$folder/bin/python" ] || python3 -m venv "$folder" >/dev/null 2>&1 || { rm -rf "$folder"; return 1; }
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --retries 1 "$@" >/dev/null 2>&1
}
# One version, as scripts/wheel.sh takes files out of its cache.
zig=ziglang==0.17.1
python_packages=('apache-tvm-ffi>=0.1.14,<0.2' numpy ml_dtypes pytest mypy)
