"""CuPy's two tables: every function of theirs is answered, and exceptions cross them."""

import re
from types import SimpleNamespace

import cupy
import pytest
from cupy_backends.cuda.api import driver, runtime

from cunorm import simgpu
from cunorm.simgpu import _tables
from cunorm.simgpu.cuda import copies, events, functions, graphs, malloc, modules, streams
from cunorm.simgpu.cuda import install as _install
from cunorm.simgpu.cuda import runtime as runtime_handlers

pytestmark = pytest.mark.simgpu

HANDLERS = {
    "runtime": (
        runtime_handlers.DeviceHandlers,
        malloc.MemoryHandlers,
        copies.CopyHandlers,
        events.EventHandlers,
        graphs.GraphHandlers,
        streams.StreamHandlers,
    ),
    "driver": (modules.ContextHandlers, modules.ModuleHandlers, functions.FunctionHandlers),
}
MODULES = {"runtime": runtime, "driver": driver}


@pytest.mark.parametrize("table", ["runtime", "driver"])
def test_every_function_of_cupy_is_replaced(table):
    ours = _tables.capsules(table)
    assert set(MODULES[table].__pyx_capi__) == set(ours) | (
        _install._KEPT if table == "runtime" else set()
    )


@pytest.mark.parametrize("table", ["runtime", "driver"])
def test_every_handler_answers_a_function_of_cupy(table):
    known = set(_tables.capsules(table)) | set(_install._PYTHON_ONLY)
    handlers = {
        name
        for part in HANDLERS[table]
        for name in vars(part)
        if re.search("[a-z][A-Z]", name)  # CUDA's names, not ours
    }
    assert handlers  # the pattern finds them
    assert handlers <= known


@pytest.mark.parametrize("table", ["runtime", "driver"])
def test_another_signature_is_refused_by_name_before_anything_is_replaced(table, monkeypatch):
    capsules = dict(MODULES[table].__pyx_capi__)
    swapped = {"runtime": ("malloc", "free"), "driver": ("moduleLoad", "moduleUnload")}[table]
    capsules[swapped[0]] = capsules[swapped[1]]
    other = SimpleNamespace(__pyx_capi__=dict(capsules))
    monkeypatch.setattr(_tables, "bind", lambda *_: pytest.fail("bound"))
    with pytest.raises(RuntimeError, match=f"does not know this CuPy: {table}.{swapped[0]} is"):
        _install._replace(table, other, ())
    assert other.__pyx_capi__ == capsules


def test_an_unknown_function_of_cupy_is_refused_by_name():
    other = SimpleNamespace(__pyx_capi__={**runtime.__pyx_capi__, "mallocSomehow": None})
    with pytest.raises(RuntimeError, match="runtime differs in mallocSomehow"):
        _install._replace("runtime", other, ())


def test_what_is_not_emulated_says_its_name():
    with pytest.raises(simgpu.NotEmulated, match="cudaCreateTextureObject"):
        runtime.createTextureObject(0, 0)
    with pytest.raises(simgpu.NotEmulated, match="cuLinkCreate"):
        driver.linkCreate()
    with pytest.raises(simgpu.NotEmulated, match="cudaIpcGetMemHandle"):
        runtime.ipcGetMemHandle(0)


class Boom(Exception):
    pass


@pytest.fixture
def failing(request):
    """Make one function of a table raise, as CuPy's own modules see it."""
    table, _, name = request.param.partition(".")

    def raise_boom(*_):
        raise Boom

    handler = getattr(MODULES[table], name)
    _tables.bind(request.param, raise_boom)
    yield
    _tables.bind(request.param, handler)


KERNEL = cupy.RawKernel('extern "C" __global__ void f() {}', "f")


@pytest.mark.parametrize(
    ("failing", "call"),
    [
        # One of each result type and each value that stands for an exception.
        ("runtime.getDevice", lambda: cupy.cuda.Device()),
        ("runtime.malloc", lambda: cupy.cuda.memory._malloc(64)),
        ("runtime.memcpyAsync", lambda: cupy.asarray([1.0])),
        ("runtime.streamGetFlags", lambda: cupy.cuda.Stream.null.is_non_blocking),
        ("runtime.streamGetPriority", lambda: cupy.cuda.Stream.null.priority),
        ("runtime.streamIsCapturing", lambda: cupy.cuda.Stream.null.is_capturing()),
        ("runtime.streamWaitEvent", lambda: cupy.cuda.Stream().wait_event(cupy.cuda.Event())),
        ("runtime.eventElapsedTime", lambda: cupy.cuda.get_elapsed_time(*[cupy.cuda.Event()] * 2)),
        ("driver.funcGetAttribute", lambda: KERNEL.num_regs),
        ("driver.launchKernel", lambda: KERNEL((1,), (1,), ())),
    ],
    indirect=["failing"],
)
def test_an_exception_of_a_handler_reaches_the_caller(failing, call):
    with pytest.raises(Boom):
        call()
