#!/usr/bin/env bash
# cpu_target.sh TARGET TESTS: the unit tests on one instruction set; exit 77 (skipped) if this machine lacks it.
set -u
export SHORTCONV_CPU_TARGET=$1
if "$2" --gtest_filter=Plan.SaysWhatItWillDo 2>&1 | grep -q 'is not available in this build on this machine'; then
  echo "this machine or build has no $1"
  exit 77
fi
exec "$2" --gtest_brief=1
