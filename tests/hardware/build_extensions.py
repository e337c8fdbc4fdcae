"""Builds cunorm's C extensions in the current folder, a checkout, with a compiler and nothing else.

    python tests/hardware/build_extensions.py

Where setuptools is too old for pyproject.toml, or not there, pip cannot.
"""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

import tomllib


def main() -> None:
    """Build every extension that pyproject.toml lists."""
    listed = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    compiler = shlex.split(os.environ.get("CC", "cc"))
    suffix, include = sysconfig.get_config_var("EXT_SUFFIX"), sysconfig.get_paths()["include"]
    for extension in listed["ext-modules"]:
        target = extension["name"].replace(".", "/") + suffix
        options = [*extension["extra-compile-args"], "-fPIC", "-shared", f"-I{include}"]
        sources = extension["sources"]
        subprocess.run([*compiler, *options, *sources, "-o", target, "-lm"], check=True)


if __name__ == "__main__":
    main()
