#!/usr/bin/env bash
# code_size.sh LIBRARY: the device code of 9.0 is small enough for the wheel, which has that of three more architectures
# and 1.2 MB of other things, to stay below 10 MB. With 2,065,288 bytes of it, and 2.24 MB on average of each other one,
# the wheel had 9,991,623.
set -u
library=$1
limit=2066000
bytes=$(readelf -SW "$library" | sed 's/^ *\[ *//' | awk '$2 == ".nv_fatbin" { print $6 }')
[ -n "$bytes" ] || { echo "$library has no device code"; exit 1; }
bytes=$((16#$bytes))
echo "$bytes bytes of device code, at most $limit"
[ $bytes -le $limit ]
