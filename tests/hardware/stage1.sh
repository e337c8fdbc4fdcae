#!/usr/bin/env bash
# Stage 1, about 8.5 minutes: what is there, and is it right? Under $OUT: environment.txt, check.txt,
# selfcheck.jsonl, checks.jsonl, junit.xml, tests.txt, sanitizer.txt
TOTAL=${TOTAL:-520}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

{
  nvidia-smi
  nvidia-smi -q -d CLOCK,POWER,TEMPERATURE | head -80
  uname -a; nproc; free -g; "$PY" --version
  "$PY" -m pip list 2>/dev/null | grep -iE 'cupy|numpy|torch|triton|ml.dtypes|nvidia|cuda|transformers|dask|pytest|hypothesis'
  command -v nvcc ncu compute-sanitizer cuobjdump gcc
} >"$OUT/environment.txt" 2>&1
grep -E 'Driver Version|cupy|^torch |^numpy|^triton|nvrtc' "$OUT/environment.txt" | cut -c1-110 | head -12
gpu
if [[ -z $DRY ]] && ! "$PY" -c 'from cunorm import simgpu; assert simgpu.hardware_devices()'; then
  say "NO DEVICE FOUND: nothing below would say anything of hardware"
  exit 1
fi

say "check: every op against float64, on all cores, then as a user runs it"
step 110 "$PY" -m hardware.selfcheck "$WORKERS" 100 >"$OUT/selfcheck.txt" 2>&1
tail -12 "$OUT/selfcheck.txt" | cut -c1-300
step 60 "$PY" ${DRY:+-m cunorm.simgpu} -m cunorm check --data tests/data/smollm2_rms_norm.npz \
  ${DRY:+--only "rms_norm float16 (0, 769)"} >"$OUT/check.txt" 2>&1 || tail -5 "$OUT/check.txt" | cut -c1-300
grep -v ' ok' "$OUT/check.txt" | tail -12 | cut -c1-200

say "what only hardware can show"
step 130 "$PY" -m hardware.run_checks --budget 115 >"$OUT/run_checks.txt" 2>&1
cut -c1-420 "$OUT/run_checks.txt"

limit=$(($(left) - 95))
((limit > 250)) && limit=250
say "the suite on $CORES cores, for $limit s at most"
step $((limit + 20)) "$PY" -m hardware.suite "$limit"

say "compute-sanitizer"
: >"$OUT/sanitizer.txt"
sanitize() { # seconds, which sizes, tool
  local seconds=$1 budget sanitizer=()
  budget=$(left)
  ((budget < 12)) && { say "$3: no time left"; return; }
  [[ -z $DRY ]] && sanitizer=(compute-sanitizer --tool "$3" --print-limit 8 --error-exitcode 9)
  echo "=== $3 $2" >>"$OUT/sanitizer.txt"
  step $((budget > seconds ? seconds : budget)) "${sanitizer[@]}" "$PY" -m hardware.sanitize "$2" \
    >"$WORK/sanitizer.txt" 2>&1
  cat "$WORK/sanitizer.txt" >>"$OUT/sanitizer.txt"
  say "$3 $2: $(grep -E 'SUMMARY|calls|ended with' "$WORK/sanitizer.txt" | tail -2 | tr '\n' ' ' | cut -c1-150)"
}
if [[ -z $DRY ]]; then
  timeout 60 "$PY" -m hardware.sanitize few >/dev/null 2>&1 # compiled, for all below
  sanitize 45 few memcheck
  sanitize 45 few racecheck
  sanitize 30 few initcheck
  sanitize 30 few synccheck
fi
sanitize 60 longest memcheck
[[ $(wc -c <"$OUT/tests.txt") -gt 15000000 ]] && truncate -s 15000000 "$OUT/tests.txt"
finish "stage 1"
