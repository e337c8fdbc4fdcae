# Sourced by the stages. Puts cunorm, this folder's scripts and what was packed with them where Python
# finds them, and says what failed at the end. Of a packed folder all is unpacked under $WORK, so that
# a later stage on the same machine finds it, kernel caches included.
set -uo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DRY=${DRY:-}
WORK=${WORK:-/tmp/cunorm_hw}
OUT=${OUT:-$WORK/out}
CORES=${CORES:-$(nproc)}
WORKERS=$((CORES > 13 ? 12 : CORES > 1 ? CORES - 1 : 1))
PY=${PY:-python3}
mkdir -p "$WORK" "$OUT"
STARTED=$SECONDS
FAILED=()

say() { printf '[%3d s] %s\n' $((SECONDS - STARTED)) "$*"; }
left() { echo $((TOTAL - (SECONDS - STARTED))); } # seconds of the stage's
gpu() { say "$(nvidia-smi --query-gpu=name,clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv,noheader 2>/dev/null)"; }

# step SECONDS COMMAND...: run a step within so many seconds; a failure keeps no later step from
# running, and is the stage's exit status. A dry run has all the time that a busy machine needs.
step() {
  local rc=0
  local seconds=$1
  [[ -n $DRY ]] && seconds=0
  timeout "$seconds" "${@:2}" || rc=$?
  if ((rc != 0)); then
    FAILED+=("$rc from ${*:2:4}")
    say "ended with $rc: ${*:2:4}"
  fi
  return $rc
}

finish() { # the name of the stage
  say "$1 is done${FAILED:+; failed: $(printf '%s; ' "${FAILED[@]}")}"
  ((${#FAILED[@]} == 0))
}

if [[ -f $HERE/tree.tar.gz ]]; then
  TREE=$WORK/tree
  if [[ ! -f $WORK/ready || $(<"$WORK/ready") != "$(<"$HERE/commit")" ]]; then
    rm -rf "$TREE" "$WORK/site"
    mkdir -p "$TREE" "$WORK/site"
    tar -C "$TREE" -xzf "$HERE/tree.tar.gz"
    # Not every machine's tar knows xz.
    [[ -f $HERE/site.tar.xz ]] && "$PY" -c "
import sys, tarfile
tarfile.open(sys.argv[1], 'r:xz').extractall(sys.argv[2], filter='data')" "$HERE/site.tar.xz" "$WORK/site"
    (cd "$TREE" && "$PY" tests/hardware/build_extensions.py) || {
      say "no C extensions built here: taking those that were packed"
      tar -C "$TREE" -xzf "$HERE/built.tar.gz"
    }
    cp "$HERE/commit" "$WORK/ready"
    say "cunorm $(cut -c1-7 "$HERE/commit") and packages unpacked"
  fi
else
  TREE=$(cd "$HERE/../.." && pwd) # a checkout, used as it is
fi
cd "$TREE" || exit 1

PYTHONPATH=$TREE:$TREE/tests:$WORK/site
if [[ -f $HERE/paths ]]; then # of .pth files, which PYTHONPATH does not read
  while read -r folder; do
    [[ -n $folder && -d $WORK/site/$folder ]] && PYTHONPATH+=:$WORK/site/$folder
  done < <(tr -d '\r' <"$HERE/paths"; echo)
fi
export PYTHONPATH OUT WORK DRY
export PYTHONUNBUFFERED=1
export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-$WORK/cupy_cache}
export TRITON_CACHE_DIR=$WORK/triton_cache TORCHINDUCTOR_CACHE_DIR=$WORK/inductor_cache
export TVM_FFI_DISABLE_TORCH_C_DLPACK=1 # or quack's compiles an extension at import, for some 30 s
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-2}
