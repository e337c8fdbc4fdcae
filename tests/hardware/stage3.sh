#!/usr/bin/env bash
# Stage 3, about 8.5 minutes: hardware counters, and whether other plans are faster. Under $OUT:
# ncu.csv, ncu.jsonl, plans.jsonl, plans.txt
TOTAL=${TOTAL:-520}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
gpu

show() {
  step 60 "$PY" -m hardware.counters show "$OUT/ncu.csv" >"$OUT/ncu.txt" 2>&1
  cut -c1-170 "$OUT/ncu.txt"
}
look() { # what ncu is asked for
  timeout 120 ncu --clock-control none --csv --page raw --print-units base "$@" \
    --kernel-name 'regex:(rms_norm|layer_norm|column_sums)' --log-file "$OUT/ncu.csv" \
    "$PY" -m hardware.counters run >"$WORK/ncu.txt" 2>&1
  (($(grep -c '^"[0-9]' "$OUT/ncu.csv") > 5)) && show
}

say "counters (ncu)"
step 60 "$PY" -m hardware.counters run # compiled
if [[ -n $DRY ]]; then
  step 60 "$PY" -m hardware.counters example >"$OUT/ncu.csv"
  show
elif command -v ncu >/dev/null; then
  look --metrics "$("$PY" -m hardware.counters metrics)" || {
    say "ncu gave little: $(grep -h '==' "$OUT/ncu.csv" "$WORK/ncu.txt" | tail -2 | tr '\n' ' ' | cut -c1-300); again with its own sections"
    look --section SpeedOfLight --section Occupancy --section LaunchStats --section MemoryWorkloadAnalysis ||
      FAILED+=("ncu")
  }
else
  say "no ncu here"
fi
say "plans"
step $(($(left) - 8)) "$PY" -m hardware.plans --workers "$WORKERS" --budget $(($(left) - 25)) \
  >"$OUT/plans.txt" 2>&1
rc=$?
grep -E '^\[ *[0-9]+ s\]' "$OUT/plans.txt" | cut -c1-190 | tail -c 8000
((rc != 0)) && tail -4 "$OUT/plans.txt" | cut -c1-300
finish "stage 3"
