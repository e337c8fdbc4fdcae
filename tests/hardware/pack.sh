#!/usr/bin/env bash
# Packs HEAD, and the Python packages that the machine's image lacks, for a machine without network.
#
#   bash tests/hardware/pack.sh OUT [--no-quack | --no-packages]
#
# OUT            a folder that is made anew
# --no-quack     leave out quack and its compiler, some 47 MiB
# --no-packages  carry cunorm alone, and ask no network for anything
#
# In OUT are tree.tar.gz (HEAD, nothing uncommitted), site.tar.xz (packages), built.tar.gz (cunorm's C
# extensions for CPython 3.12, used only where the machine cannot build them) and the stages.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
PYTHON=3.12 # of the machine's image
packages=(liger-kernel==0.8.5)
# What of dask the image lacks, for tests/interop/test_dask.py.
packages+=(dask==2026.8.0 distributed==2026.8.0 msgpack tornado tblib zict locket partd importlib-metadata)
# The last quack whose compiler is small; later ones take 92 MB and more.
quack=(quack-kernels==0.2.4 nvidia-cutlass-dsl==4.3.5 apache-tvm-ffi torch-c-dlpack-ext)
case ${2:-} in
  '') packages+=("${quack[@]}") ;;
  --no-quack) ;;
  --no-packages) packages=() ;;
  *) echo "pack.sh: unknown option $2" >&2; exit 2 ;;
esac

out=${1:?"pack.sh: name a folder to make"}
rm -rf "$out"
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git -C "$ROOT" archive --format=tar HEAD | gzip -9 >"$out/tree.tar.gz"
git -C "$ROOT" rev-parse HEAD >"$out/commit"
cp "$HERE"/common.sh "$HERE"/stage?.sh "$HERE"/README.md "$out/"

if ((${#packages[@]})); then
  platforms=()
  for glibc in 2_28 2_27 2_24 2_17 2014 1; do
    platforms+=(--platform "manylinux${glibc/#2_/_2_}_x86_64")
  done
  python3 -m pip install --quiet --disable-pip-version-check --target "$work/site" --no-deps \
    --no-compile --only-binary=:all: --python-version "$PYTHON" --implementation cp \
    --abi "cp${PYTHON/./}" --abi abi3 --abi none "${platforms[@]}" "${packages[@]}"
  cat "$work"/site/*.pth >"$out/paths" 2>/dev/null || true
  rm -rf "$work/site/bin"
  tar -C "$work/site" --sort=name --owner=0 --group=0 -cf - . | xz -T0 -3 >"$out/site.tar.xz"
fi

python=$(command -v "python$PYTHON" || true)
if [[ -n $python ]] && "$python" -c '' 2>/dev/null; then
  mkdir "$work/tree"
  tar -C "$work/tree" -xzf "$out/tree.tar.gz"
  (cd "$work/tree" && "$python" tests/hardware/build_extensions.py &&
    find cunorm -name '*.so' -print0 | tar --null -T - -czf "$out/built.tar.gz")
else
  echo "pack.sh: no Python $PYTHON here: the machine has to build the C extensions itself" >&2
fi
echo "pack.sh: $(du -sm "$out" | cut -f1) MiB in $out (commit $(cut -c1-7 "$out/commit"))"
