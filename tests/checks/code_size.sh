#!/usr/bin/env bash
# code_size.sh LIBRARY ARCHITECTURES: the device code of each architecture is small enough for all that a wheel has, four
# and 1.2 MB of other things, to stay below 10 MB. The compiled kernels of 9.0 are a twentieth smaller than the average.
set -u
library=$1
architectures=$2
limit=2100000
bytes=$(readelf -SW "$library" | sed 's/^ *\[ *//' | awk '$2 == ".nv_fatbin" { print $6 }')
[ -n "$bytes" ] || { echo "$library has no device code"; exit 1; }
each=$((16#$bytes / architectures))
echo "$each bytes of device code an architecture, at most $limit"
[ $each -le $limit ]
