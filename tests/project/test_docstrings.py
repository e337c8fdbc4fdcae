"""Docstrings of everything public: numpydoc's rules hold, and examples print what they say."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
from numpydoc.hooks.validate_docstrings import parse_config
from numpydoc.validate import validate

import cunorm
import cunorm.torch
from cunorm import simgpu

ROOT = Path(__file__).parents[2]
CHECKS = parse_config(ROOT)["checks"]

OPS = [f"cunorm.{name}" for name in cunorm.__all__]
OF_TENSORS = [f"cunorm.torch.{name}" for name in cunorm.torch.__all__]
# The others are exceptions, which a user catches and does not call.
OF_SIMGPU = [f"cunorm.simgpu.{name}" for name in simgpu.__all__ if name[0].islower()]


def found(name):
    """Return what a public name stands for."""
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules[module], attribute)


@pytest.mark.parametrize("name", [*OPS, *OF_TENSORS, *OF_SIMGPU])
def test_a_docstring_is_numpydocs(name):
    assert {"PR03", "EX01", "SA01"} <= CHECKS
    assert [error for error in validate(name)["errors"] if error[0] in CHECKS] == []


@pytest.mark.slow("a kernel or two each")
@pytest.mark.parametrize("name", [*OPS, *OF_TENSORS])
def test_examples_print_what_they_say(name):
    (test,) = doctest.DocTestFinder(recurse=False).find(found(name), name, globs={})
    assert test.examples
    told = []
    doctest.DocTestRunner().run(test, out=told.append)
    assert "".join(told) == ""


# They install the software GPU, which has to come before CuPy.
PROGRAM = """
import doctest, sys
from cunorm import simgpu
for name in sys.argv[1:]:
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(simgpu, name), name, globs={})
    assert test.examples, name
    doctest.DocTestRunner().run(test)
"""


def test_examples_of_the_software_gpu_print_what_they_say():
    names = [name.rpartition(".")[2] for name in OF_SIMGPU]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, cwd=ROOT
    )
    assert (run.stdout, run.stderr) == ("", "")
