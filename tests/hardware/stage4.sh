#!/usr/bin/env bash
# Stage 4, for time that is left: the whole suite, and host times. Under $OUT: junit.xml, tests.txt,
# host.txt
TOTAL=${TOTAL:-530}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
limit=$(($(left) - 70))
say "the whole suite on $CORES cores, for $limit s at most"
step $((limit + 20)) "$PY" -m hardware.suite "$limit" --all

say "host time of calls, as docs/benchmarks.md has it; where one is past its bound, that is to be changed"
only=test_host_time
[[ -n $DRY ]] && only='test_a_call_is_one_launch and layer_norm'
step 45 "$PY" -m pytest tests/benchmarks/test_host_time.py -q -p no:cacheprovider --no-header \
  --benchmark-columns=min,median -k "$only" >"$OUT/host.txt" 2>&1
grep -E 'test_host|passed|failed' "$OUT/host.txt" | cut -c1-120 | tail -20
finish "stage 4"
