#!/usr/bin/env bash
# cpu_target.sh TARGET TESTS: the unit tests on one instruction set. Exit 77 (skipped) if this machine lacks it, or if it is
# the best one of this machine, on which the tests run anyway.
set -u
target=$1
tests=$2

# has_target TARGET: whether this build has it and this machine can run it.
has_target() {
  ! SHORTCONV_CPU_TARGET=$1 "$tests" --gtest_filter=Plan.SaysWhatItWillDo 2>&1 |
    grep -q 'is not available in this build on this machine'
}

if ! has_target "$target"; then
  echo "this machine or build has no $target"
  exit 77
fi
for best in AVX3 AVX2 SCALAR; do
  if has_target "$best"; then break; fi
done
if [ "$target" = "$best" ]; then
  echo "$target is the best of this machine: the unit tests run on it without being told"
  exit 77
fi
SHORTCONV_CPU_TARGET=$target exec "$tests" --gtest_brief=1
