#!/usr/bin/env bash
# code_size.sh LIBRARY: the device code for 9.0 leaves the wheel, which has three more architectures and 1.2 MB of other
# files, below 32 MB. The code of the other architectures is 1.09 times as large on average.
set -u
library=$1
limit=7100000
bytes=$(readelf -SW "$library" | sed 's/^ *\[ *//' | awk '$2 == ".nv_fatbin" { print $6 }')
[ -n "$bytes" ] || { echo "$library has no device code"; exit 1; }
bytes=$((16#$bytes))
echo "$bytes bytes of device code, at most $limit"
[ $bytes -le $limit ]
