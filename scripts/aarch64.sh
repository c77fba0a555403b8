#!/usr/bin/env bash
# Builds the command line for aarch64 with a cross compiler and runs random calls against the fp64 reference under an
# emulator (NEON). Takes about 10 minutes of CPU.
#   scripts/aarch64.sh [CASES]
# CASES is the number of random calls (default: 3000). Needs Debian or Ubuntu: a cross compiler, qemu-user-static, and
# the arm64 packages of the libraries, which are unpacked into build/aarch64/root and not installed.
set -eu
cd "$(dirname "$0")/.."
. scripts/dependencies.sh
cases=${1:-3000}
need_packages cmake ninja-build pkg-config curl g++-aarch64-linux-gnu qemu-user-static libhwy-dev
folder=$PWD/build/aarch64
root=$folder/root

if [ ! -d "$root" ]; then
  mkdir -p "$folder/packages"
  (
    cd "$folder/packages"
    # Debian has one version for all architectures, so the addresses differ in its name only.
    libraries=$(apt-cache depends libhwy-dev libfmt-dev | sed -n 's/.*Depends: \(lib\(hwy\|fmt\)[0-9.]*\)$/\1/p')
    apt-get download --print-uris libhwy-dev libfmt-dev libcli11-dev nlohmann-json3-dev $libraries |
      cut -d"'" -f2 | sed "s/_$(dpkg --print-architecture)\.deb/_arm64.deb/" | xargs -n 1 curl -fsSLO
    for package in *.deb; do dpkg-deb -x "$package" "$root"; done
  )
fi

export PKG_CONFIG_SYSROOT_DIR=$root PKG_CONFIG_LIBDIR=$root/usr/lib/aarch64-linux-gnu/pkgconfig
cmake -S . -B "$folder/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux \
  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_PREFIX_PATH="$root/usr" -DSHORTCONV_CUDA=OFF \
  -DSHORTCONV_TESTS=OFF -DSHORTCONV_DEVELOPER=ON -DBUILD_SHARED_LIBS=OFF >/dev/null
cmake --build "$folder/build" --target shortconv_cli
emulator=(qemu-aarch64-static -L /usr/aarch64-linux-gnu -E "LD_LIBRARY_PATH=$root/usr/lib/aarch64-linux-gnu")
"${emulator[@]}" "$folder/build/tools/shortconv" info
"${emulator[@]}" "$folder/build/tools/shortconv" verify --backend cpu --cases "$cases"
