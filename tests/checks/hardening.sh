#!/usr/bin/env bash
# hardening.sh FILE...: each program or shared library resolves its symbols when it is loaded, has its tables of addresses
# read-only from then on, and no executable stack.
set -u
status=0
for file in "$@"; do
  [ -n "$file" ] || continue # a generator expression of what was not built
  headers=$(readelf -dlW "$file") || exit 2
  grep -qE '\((FLAGS|BIND_NOW)\).*BIND_NOW|\(FLAGS_1\).*NOW' <<<"$headers" || { echo "$file: no BIND_NOW"; status=1; }
  grep -q GNU_RELRO <<<"$headers" || { echo "$file: no GNU_RELRO"; status=1; }
  grep -E 'GNU_STACK' <<<"$headers" | grep -q ' RW ' || { echo "$file: executable stack"; status=1; }
done
exit $status
