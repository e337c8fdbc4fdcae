"""What importing cunorm costs and loads, what it exports, and what its wheel holds."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cunorm

ROOT = Path(__file__).parents[1]


def fresh(code):
    """Run code in a new interpreter and return what it printed, as JSON."""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(run.stdout)


def test_importing_cunorm_loads_neither_cupy_nor_numpy_nor_torch():
    loaded = fresh(
        "import sys, json, cunorm; print(json.dumps([m.split('.')[0] for m in sys.modules]))"
    )
    assert "cunorm" in loaded
    assert {"cupy", "cupy_backends", "dask", "ml_dtypes", "numpy", "torch"} & set(loaded) == set()


def test_importing_cunorm_takes_less_than_50_ms():
    # Of the processor's time, which other work on the machine does not lengthen by much.
    code = "import time; t = time.process_time(); import cunorm; print(time.process_time() - t)"
    assert min(fresh(code) for _ in range(5)) < 0.050


def test_the_public_names_are_sorted_and_exist():
    assert cunorm.__all__ == sorted(cunorm.__all__)
    assert all(callable(getattr(cunorm, name)) for name in cunorm.__all__)


def test_dir_has_the_public_names_alone():
    assert dir(cunorm) == sorted({"__version__", *cunorm.__all__, "simgpu", "torch"})


def test_dir_has_no_torch_where_there_is_none():
    code = (
        "import sys, json; sys.modules['torch'] = None; import cunorm\n"
        "try: cunorm.torch\n"
        "except ModuleNotFoundError as e: print(json.dumps([dir(cunorm), str(e)]))"
    )
    names, message = fresh(code)
    assert "torch" not in names
    assert "simgpu" in names
    assert "torch" in message


@pytest.mark.parametrize("module", ["simgpu", "torch"])
def test_a_module_is_there_without_an_import_of_its_own(module):
    loaded = "{'cupy', 'numpy', 'torch', 'cunorm.simgpu', 'cunorm.torch'} & set(sys.modules)"
    code = (
        f"import sys, json, cunorm; before = sorted({loaded}); name = cunorm.{module}.__name__; "
        f"print(json.dumps([before, name, sorted({loaded})]))"
    )
    before, name, after = fresh(code)
    assert before == []
    assert name == f"cunorm.{module}"
    assert "cupy" not in after
    assert ("torch" in after) == (module == "torch")


def test_a_star_imports_no_torch():
    assert (
        fresh("import sys, json; from cunorm import *; print(json.dumps('torch' in sys.modules))")
        is False
    )


def test_a_name_that_does_not_exist_says_so():
    with pytest.raises(AttributeError, match="module 'cunorm' has no attribute 'batch_norm'"):
        cunorm.batch_norm  # noqa: B018


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the files that git tracks: what a clone has, and nothing built."""
    source = tmp_path_factory.mktemp("source")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, names.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source], check=True
    )
    (path,) = folder.glob("cunorm-*.whl")
    return path


def test_the_wheel_holds_the_kernels_the_types_and_every_module(source, wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    kernels = {f"cunorm/kernels/{file.name}" for file in (source / "kernels").glob("*.cu*")}
    modules = {
        str(file.relative_to(source))
        for file in (source / "cunorm").rglob("*")
        if file.suffix == ".py" or file.name == "py.typed"
    }
    assert len(kernels) >= 5
    assert (kernels | modules) - held == set()


def test_the_wheel_holds_the_software_gpu_and_no_tests(wheel):
    held = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("cunorm/simgpu/_tables.") for name in held)
    assert not [name for name in held if name.startswith(("tests/", "kernels/"))]


def test_installed_from_the_wheel_the_kernels_are_found_and_run(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import cunorm.simgpu; cunorm.simgpu.install()\n"
        "import cupy, cunorm, cunorm._kernels\n"
        "y = cunorm.rms_norm(cupy.ones((2, 5), 'float32'), eps=3.0)\n"
        "print(cunorm.__file__, cunorm._kernels.folder(), cupy.asnumpy(y)[1, 4], sep='\\n')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    package = tmp_path / "cunorm"
    assert run.stdout.splitlines() == [
        str(package / "__init__.py"),
        str(package / "kernels"),
        "0.5",
    ]
