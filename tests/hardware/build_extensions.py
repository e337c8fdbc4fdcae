"""Builds cunorm's C extensions in the current folder, a checkout, with a compiler and nothing else.

    python tests/hardware/build_extensions.py

`pip install -e .` builds them by setuptools, which an image may lack, or have too old.
"""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

# Those of the extension that computes, which do the other no harm.
OPTIONS = ("-O3", "-std=c11", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")


def main() -> None:
    """Build each `name.c` of the package as the extension `_name` beside it."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    suffix, include = sysconfig.get_config_var("EXT_SUFFIX"), sysconfig.get_paths()["include"]
    sources = sorted(Path("cunorm").rglob("*.c"))
    if not sources:
        raise SystemExit(f"{Path.cwd()} is no checkout of cunorm: it has no C sources")
    for source in sources:
        target = source.with_name(f"_{source.stem}{suffix}")
        files = (str(source), "-o", str(target))
        subprocess.run([*compiler, *OPTIONS, f"-I{include}", *files, "-lm"], check=True)


if __name__ == "__main__":
    main()
