"""The sdist, the wheel, and an editable install: what they hold, and who finds them where."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow("builds each of them, for seconds", together="packages")

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: os.environ[name] for name in os.environ if name != "PYTHONDONTWRITEBYTECODE"}


def ran(*command, cwd, **environment):
    """Return the output of a command, both streams in one."""
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT | environment, stdout=-1, stderr=-2, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def tracked():
    """Return the names of a clone's files; in an unpacked sdist, those that it lists."""
    if (ROOT / ".git").exists():
        listed = ran("git", "ls-files", cwd=ROOT)
    else:
        listed = (ROOT / "cunorm.egg-info" / "SOURCES.txt").read_text()
    return listed.split("\n")[:-1]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A function that builds something as pip does, from a folder, and returns it and its log."""
    backend = tmp_path_factory.mktemp("backend")
    ran(
        *(sys.executable, "-m", "pip", "install", "-q", "--target", backend, "setuptools>=77"),
        cwd=backend,
    )

    def build(what, folder):
        target = tmp_path_factory.mktemp(what)
        code = f"from setuptools import build_meta; build_meta.build_{what}({str(target)!r})"
        log = ran(sys.executable, "-c", code, cwd=folder, PYTHONPATH=str(backend))
        (path,) = target.iterdir()
        return path, log

    return build


@pytest.fixture(scope="module")
def sdist(build, tmp_path_factory):
    """What `python -m build` makes of a clone in which nothing was built."""
    clone = tmp_path_factory.mktemp("clone")
    for name in tracked():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes((ROOT / name).read_bytes())
    return build("sdist", clone)


@pytest.fixture(scope="module")
def source(sdist, tmp_path_factory):
    """The sdist unpacked, in a folder that has the name of the package, as clones have."""
    above = tmp_path_factory.mktemp("above")
    with tarfile.open(sdist[0]) as archive:
        archive.extractall(above, filter="data")
    (unpacked,) = above.iterdir()
    return unpacked.rename(above / "cunorm")


@pytest.fixture(scope="module")
def wheel(build, source):
    return build("wheel", source)


@pytest.fixture(scope="module")
def editable(build, source, tmp_path_factory):
    """A Python in whose environment there is an editable install, and nothing else."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    path, log = build("editable", source)
    zipfile.ZipFile(path).extractall(site_packages)
    return environment / "bin" / "python", log


def test_the_sdist_holds_every_file_of_a_clone(sdist):
    with tarfile.open(sdist[0]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert set(tracked()) - held == set()


def test_nothing_is_warned_of_as_it_is_built(sdist, wheel, editable):
    said = [line for _, log in (sdist, wheel, editable) for line in log.splitlines()]
    assert said  # what is copied
    assert [line for line in said if "warn" in line.lower()] == []


def test_the_wheel_holds_the_kernels_the_types_and_every_module(source, wheel):
    held = set(zipfile.ZipFile(wheel[0]).namelist())
    kernels = {f"cunorm/kernels/{file.name}" for file in (source / "kernels").iterdir()}
    modules = {
        str(file.relative_to(source))
        for file in (source / "cunorm").rglob("*")
        if file.suffix in (".py", ".pyi") or file.name == "py.typed"
    }
    assert len(kernels) >= 5
    assert (kernels | modules) - held == set()


def test_the_wheel_holds_the_software_gpu_and_no_tests(wheel):
    held = zipfile.ZipFile(wheel[0]).namelist()
    assert any(name.startswith("cunorm/simgpu/_tables.") for name in held)
    assert not [name for name in held if not name.startswith(("cunorm/", "cunorm-"))]
    assert not [name for name in held if name.endswith(".c")]


def test_installed_from_the_wheel_the_kernels_are_found_and_run(wheel, tmp_path):
    zipfile.ZipFile(wheel[0]).extractall(tmp_path)
    code = (
        "import cunorm.simgpu; cunorm.simgpu.install()\n"
        "import cupy, cunorm; from cunorm._launch import kernels\n"
        "y = cunorm.rms_norm(cupy.ones((2, 5), 'float32'), eps=3.0)\n"
        "print(cunorm.__file__, kernels.folder(), cupy.asnumpy(y)[1, 4], sep='\\n')\n"
    )
    package = tmp_path / "cunorm"
    assert ran(sys.executable, "-c", code, cwd=tmp_path).splitlines() == [
        str(package / "__init__.py"),
        str(package / "kernels"),
        "0.5",
    ]


@pytest.mark.usefixtures("editable")  # which built the extension in place
def test_the_tests_run_in_an_unpacked_sdist(source):
    # What is soon done and needs all there is: kernels, data, helpers, the software GPU's tables.
    tests = ("tests/ops/test_real_data.py", "tests/simgpu/test_tables.py")
    log = ran(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=source)
    assert " passed in " in log.splitlines()[-1]


@pytest.mark.parametrize("where", [".", "..", "/"])
def test_an_editable_install_is_the_package_wherever_python_is_started(editable, source, where):
    """The folder that holds a clone has a folder `cunorm`, which Python took for the package."""
    code = (
        "import cunorm, cunorm._launch.kernels as k\nprint(cunorm.__file__, k.folder(), sep='\\n')"
    )
    said = ran(editable[0], "-c", code, cwd=source / where).splitlines()
    assert said == [str(source / "cunorm" / "__init__.py"), str(source / "kernels")]


@pytest.mark.parametrize("where", ["elsewhere", "above"])
def test_a_user_s_script_is_checked_against_an_editable_install(editable, source, tmp_path, where):
    script = tmp_path / "script.py"
    script.write_text("import cunorm\n\ncunorm.layer_norm(object(), epsilon=1e-5)\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", editable[0], script],
        cwd=tmp_path if where == "elsewhere" else source.parent,
        env=ENVIRONMENT | {"MYPY_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert 'Unexpected keyword argument "epsilon" for "layer_norm"' in done.stdout, done
    assert "in 1 file (checked 1 source file)" in done.stdout  # the script, and no file of cunorm
