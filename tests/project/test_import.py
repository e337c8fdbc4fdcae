"""What importing cunorm costs and loads, what it exports, and what it says without CuPy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cunorm

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("use", ["cunorm.rms_norm", "from cunorm import layer_norm_bwd"])
def test_without_cupy_the_first_use_of_an_op_says_which_two_there_are(use):
    said = fresh(
        "import json, sys; sys.modules['cupy'] = None\n"
        "import cunorm\n"
        f"try:\n    {use}\n"
        "except ModuleNotFoundError as e:\n    print(json.dumps([e.name, str(e)]))"
    )
    name = use.replace(".", " ").split()[-1]
    assert said == [
        "cupy",
        f"cunorm.{name} needs CuPy, and none is installed: pip install 'cunorm[cuda12]', or "
        "'cunorm[cuda13]' for CUDA 13",
    ]


def test_another_module_that_is_missing_is_named_as_it_is():
    said = fresh(
        "import json, sys; sys.modules['numpy'] = None\n"
        "import cunorm\n"
        "try:\n    cunorm.rms_norm\nexcept ModuleNotFoundError as e:\n    print(json.dumps(e.name))"
    )
    assert said == "numpy"
