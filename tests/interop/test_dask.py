"""Dask arrays of CuPy chunks: lazy, and when computed the bits of one CuPy array."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cupy
import dask
import dask.array as da
import numpy as np
import pytest
from arrays import EVERY, bits, random
from kinds import IN_TURNS

import cunorm
from cunorm import simgpu

ROOT = Path(__file__).parents[2]
OPS = [cunorm.rms_norm, cunorm.layer_norm]
ops = pytest.mark.parametrize("op", OPS)
SHAPE = (7, 5, 24)
CHUNKS = {
    "one chunk": SHAPE,
    "rows of chunks": (3, 5, 24),
    "two chunked axes": (2, 3, 24),
    "a row each": (1, 1, 24),
}


def lazy(host, chunks):
    return da.from_array(host, chunks=chunks).map_blocks(cupy.asarray)


def parameters(op, shape=SHAPE[-1:], dtype="float32"):
    names = ("gamma", "beta") if op is cunorm.layer_norm else ("gamma",)
    return {
        name: cupy.asarray(random(shape, dtype, seed=seed + 1)) for seed, name in enumerate(names)
    }


def kinds_of_arguments(op):
    """Return what an op may be given besides x."""
    both = parameters(op)
    kinds = {
        "nothing": {},
        "parameters": both,
        "narrow parameters": parameters(op, dtype="float16"),
    }
    if op is cunorm.layer_norm:
        kinds |= {"beta alone": {"beta": both["beta"]}, "eps": {"eps": 0.5}}
    else:
        kinds |= {"options": {"eps": 0.5, "gamma_offset": 1.0, "cast": "after"} | both}
    return kinds


ARGUMENTS = [(op, kind) for op in OPS for kind in kinds_of_arguments(op)]


def assert_same(result, expected):
    computed = result.compute()
    assert isinstance(computed, cupy.ndarray)
    assert (computed.shape, computed.dtype) == (expected.shape, expected.dtype)
    assert bits(computed) == bits(expected)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("dtype", EVERY)
@ops
def test_chunks_have_the_bits_of_one_array(op, dtype, chunks):
    x = random(SHAPE, dtype)
    given = parameters(op)
    assert_same(op(lazy(x, CHUNKS[chunks]), **given), op(cupy.asarray(x), **given))


@pytest.mark.parametrize(("op", "kind"), ARGUMENTS)
def test_every_argument_reaches_the_chunks(op, kind):
    x, given = random(SHAPE, "bfloat16"), kinds_of_arguments(op)[kind]
    expected = op(cupy.asarray(x), **given)
    assert kind == "nothing" or bits(expected) != bits(op(cupy.asarray(x)))
    assert_same(op(lazy(x, (3, 2, 24)), **given), expected)


@ops
def test_two_axes_may_be_normalised(op):
    x, given = random(SHAPE, "float32"), parameters(op, SHAPE[1:])
    assert_same(op(lazy(x, (2, 5, 24)), **given), op(cupy.asarray(x), **given))


@ops
def test_parameters_may_be_dask_arrays_in_one_chunk(op):
    x, given = random(SHAPE, "float16"), parameters(op)
    chunked = {name: lazy(value.get(), -1) for name, value in given.items()}
    assert_same(op(lazy(x, (3, 2, 24)), **chunked), op(cupy.asarray(x), **given))


def test_one_parameter_may_be_a_dask_array_and_the_other_not():
    x, given = random(SHAPE, "float16"), parameters(cunorm.layer_norm)
    mixed = given | {"gamma": lazy(given["gamma"].get(), -1)}
    assert_same(
        cunorm.layer_norm(lazy(x, (3, 5, 24)), **mixed), cunorm.layer_norm(cupy.asarray(x), **given)
    )


@ops
def test_parameters_count_as_they_are_at_the_call(op):
    x, given = random(SHAPE, "float32"), parameters(op)
    expected = op(cupy.asarray(x), **given)
    result = op(lazy(x, (3, 5, 24)), **given)
    for value in given.values():
        value[...] = 7
    assert_same(result, expected)


@ops
def test_rows_may_be_unknown_in_number(op):
    x, given = random(SHAPE, "float32"), parameters(op)
    kept = np.arange(len(x)) % 3 > 0
    chunked = lazy(x, (3, 5, 24))
    result = op(chunked[da.from_array(kept, chunks=3)], **given)
    assert np.isnan(result.shape[0])
    assert_same(result, op(cupy.asarray(x[kept]), **given))


@ops
def test_there_may_be_no_rows(op):
    assert_same(op(lazy(random((0, 24), "float16"), (0, 24))), cupy.empty((0, 24), "float16"))


@ops
def test_ops_follow_each_other(op):
    x = random(SHAPE, "float32")
    chained = op(2 * op(lazy(x, (3, 5, 24))))[1:, ::2]
    assert_same(chained, op(2 * op(cupy.asarray(x)))[1:, ::2])


@pytest.mark.parametrize("dtype", EVERY)
@ops
def test_the_result_has_the_chunks_and_the_type_of_x(op, dtype):
    x = lazy(random(SHAPE, dtype), (3, 2, 24))
    y = op(x, **parameters(op))
    assert isinstance(y, da.Array)
    assert (y.shape, y.chunks, y.dtype) == (x.shape, x.chunks, x.dtype)
    assert isinstance(y._meta, cupy.ndarray)
    assert (y._meta.shape, y._meta.dtype) == ((0, 0, 0), x.dtype)
    assert y.name.startswith(f"{op.__name__}-")


@pytest.mark.simgpu
@ops
def test_nothing_is_launched_before_it_is_computed(op):
    x, given = lazy(random(SHAPE, "float32"), (3, 5, 24)), parameters(op)
    with simgpu.profile(registers=False) as before:
        y = op(x, **given)
    with simgpu.profile(registers=False) as computing:
        y.compute(scheduler="synchronous")
    assert len(before.launches) == 0
    launched = [launch.kernel for launch in computing.launches]
    assert launched.count(op.__name__) == y.npartitions == 3


@ops
def test_equal_calls_have_equal_names_and_others_other_names(op):
    x, given = lazy(random(SHAPE, "float32"), (3, 5, 24)), parameters(op)
    name = op(x, **given).name
    assert op(x, **{key: value.copy() for key, value in given.items()}).name == name
    others = [op(x), op(x, **given, eps=0.5), op(x + 1, **given), op(x, gamma=given["gamma"] + 1)]
    assert len({name, *(other.name for other in others)}) == 5


@pytest.mark.skipif(cupy.cuda.runtime.getDeviceCount() < 2, reason="needs two devices")
@pytest.mark.parametrize("parameter_device", [0, 1])
@ops
def test_chunks_are_normalised_where_they_are(op, parameter_device):
    def by_rows(chunk, block_info=None):
        with cupy.cuda.Device(block_info[0]["chunk-location"][0] % 2):
            return cupy.asarray(chunk)

    x = random((8, 24), "float32")
    with cupy.cuda.Device(parameter_device):
        given = parameters(op)
    placed = da.from_array(x, chunks=(2, 24)).map_blocks(by_rows, meta=cupy.empty((0, 0), "f4"))
    chunks = dask.compute(
        *op(placed, **given).to_delayed().ravel()
    )  # as they are, not put together
    assert [chunk.device.id for chunk in chunks] == [0, 1, 0, 1]
    expected = op(cupy.asarray(x), **{name: cupy.asarray(value) for name, value in given.items()})
    assert b"".join(map(bits, chunks)) == bits(expected)


REFUSED = {
    "eps": {"eps": -1.0},
    "type of eps": {"eps": [1.0]},
    "shape of gamma": {"gamma": lambda: cupy.ones(8, "float32")},
    "axes of gamma": {"gamma": lambda: cupy.ones((7, 7, 5, 24), "float32")},
    "gamma without axes": {"gamma": lambda: cupy.ones((), "float32")},
    "dtype of gamma": {"gamma": lambda: cupy.ones(24, "float64")},
    "type of gamma": {"gamma": lambda: np.ones(24, "float32")},
}


@pytest.mark.parametrize("wrong", REFUSED)
@ops
def test_a_wrong_argument_is_refused_at_the_call_as_with_one_array(op, wrong):
    given = {name: v() if callable(v) else v for name, v in REFUSED[wrong].items()}
    x = random(SHAPE, "float16")
    with pytest.raises((TypeError, ValueError)) as one:
        op(cupy.asarray(x), **given)
    with pytest.raises(one.type) as many:
        op(lazy(x, (3, 2, 24)), **given)
    assert str(many.value) == str(one.value)
    assert many.value.__context__ is None


@pytest.mark.parametrize(
    "wrong", [{"gamma_offset": 1.0}, {"gamma_offset": "1"}, {"cast": "never"}, {"cast": 1}]
)
def test_a_wrong_option_of_rms_norm_is_refused_at_the_call(wrong):
    x = random(SHAPE, "float16")
    with pytest.raises((TypeError, ValueError)) as one:
        cunorm.rms_norm(cupy.asarray(x), **wrong)
    with pytest.raises(one.type) as many:
        cunorm.rms_norm(lazy(x, (3, 2, 24)), **wrong)
    assert str(many.value) == str(one.value)


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
@ops
def test_x_of_another_dtype_is_refused(op, dtype):
    with pytest.raises(TypeError, match=f"x must be float16, bfloat16.* but is {dtype}"):
        op(lazy(np.ones((4, 8), dtype), (2, 8)))


@ops
def test_x_without_axes_is_refused(op):
    with pytest.raises(ValueError, match="x must have at least one axis, but is 0-dimensional"):
        op(lazy(np.ones((), "float32"), ()))


@ops
def test_chunks_in_host_memory_are_refused(op):
    message = (
        r"x must have chunks of cupy\.ndarray, but has chunks of numpy\.ndarray: "
        r"x\.map_blocks\(cupy\.asarray\) moves them"
    )
    with pytest.raises(TypeError, match=message):
        op(da.ones(SHAPE, dtype="float32"))
    with pytest.raises(TypeError, match="gamma must have chunks of cupy"):
        op(lazy(random(SHAPE, "float32"), SHAPE), da.ones(24, dtype="float32"))


@ops
def test_chunks_that_turn_out_to_be_in_host_memory_are_refused(op):
    lied = da.ones((4, 8), dtype="float32").map_blocks(np.array, meta=cupy.empty((0, 0), "f4"))
    with pytest.raises(
        TypeError, match=r"x must have chunks of cupy\.ndarray, but has chunks of numpy"
    ):
        op(lied).compute()


@pytest.mark.parametrize(
    ("chunks", "gamma", "message"),
    [
        (
            (7, 4, 24),
            SHAPE[1:],
            "x must be in one chunk along each normalised axis, [1, 2], but has chunks (4, 1) "
            "along axis 1: x.rechunk({1: -1}) makes it so",
        ),
        (
            (7, 4, 1),
            SHAPE[1:],
            "x must be in one chunk along each normalised axis, [1, 2], but has chunks (4, 1) "
            "along axis 1 and chunks (1, 1, 1, 1, 1, 1, ...) along axis 2: "
            "x.rechunk({1: -1, 2: -1}) makes it so",
        ),
    ],
)
@ops
def test_chunks_that_cut_a_row_are_refused_with_what_mends_them(op, chunks, gamma, message):
    x = random(SHAPE, "float32")
    chunked = lazy(x, chunks)
    given = parameters(op, gamma)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        op(chunked, **given)
    mended = eval(message.split(": ", 1)[1].removesuffix(" makes it so"), {"x": chunked})
    assert_same(op(mended, **given), op(cupy.asarray(x), **given))


@IN_TURNS
@pytest.mark.parametrize("kind", ["nothing", "parameters", "a parameter of dask's"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@ops
def test_columns_may_be_in_several_chunks(op, dtype, kind):
    x = random(SHAPE, dtype)
    given = {} if kind == "nothing" else parameters(op, dtype=dtype)
    of_dask = dict(given)
    if kind == "a parameter of dask's":
        of_dask["gamma"] = lazy(given["gamma"].get(), given["gamma"].shape)
    y = op(lazy(x, (3, 5, (10, 6, 8))), **of_dask)
    assert (y.shape, y.dtype, y.chunks[-1]) == (x.shape, x.dtype, (10, 6, 8))
    whole = op(cupy.asarray(x), **given).get().astype(np.float64)
    close = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-14}[dtype]
    np.testing.assert_allclose(y.compute().get().astype(np.float64), whole, close, close)


@ops
def test_columns_in_chunks_of_unknown_number_are_refused(op):
    x, kept = random((6, 48), "float32"), np.arange(48) % 2 == 0
    columns = lazy(x, (3, 24))[:, da.from_array(kept, 24)]
    message = "x must have chunks of known sizes along the axis that they cut, but has chunks"
    with pytest.raises(ValueError, match=f"^{message}"):
        op(columns)


@ops
def test_columns_of_unknown_number_are_refused_where_there_are_parameters(op):
    x, kept = random((6, 48), "float32"), np.arange(48) % 2 == 0
    columns = lazy(x, (3, 48))[:, da.from_array(kept)]
    with pytest.raises(ValueError, match=r"chunks of known sizes .* x\.compute_chunk_sizes\(\)"):
        op(columns, **parameters(op))
    assert_same(op(columns), op(cupy.asarray(x[:, kept])))


@ops
def test_gamma_in_several_chunks_is_refused(op):
    x = lazy(random(SHAPE, "float32"), SHAPE)
    message = r"gamma must be in one chunk, but has chunks \(\(12, 12\),\): gamma\.rechunk\(-1\)"
    with pytest.raises(ValueError, match=message):
        op(x, lazy(random((24,), "float32"), 12))


@ops
def test_out_is_refused(op):
    with pytest.raises(TypeError, match="out must be None where x is a dask array"):
        op(lazy(random(SHAPE, "float32"), SHAPE), out=cupy.empty(SHAPE, "float32"))


def test_the_other_ops_say_which_ones_take_dask_arrays():
    x, row = lazy(random(SHAPE, "float32"), SHAPE), cupy.ones(SHAPE[:-1], "float32")
    message = (
        r"must be a cupy\.ndarray.*, but is a dask\.array.*; only rms_norm and layer_norm take"
    )
    one = x.compute()
    for call in (
        lambda: cunorm.rms_norm_fwd(x),
        lambda: cunorm.layer_norm_fwd(x),
        lambda: cunorm.add_rms_norm(x, x),
        lambda: cunorm.add_layer_norm(one, x),
        lambda: cunorm.rms_norm_bwd(x, x, None, row),
        lambda: cunorm.layer_norm_bwd(x, one, None, row, row),
        lambda: cunorm.rms_norm(one, lazy(random((24,), "float32"), 24)),
        lambda: cunorm.layer_norm(one, out=x),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def run(code, tmp_path):
    """Run code as a script, on the software GPU where this process is, and return what it prints.

    Warnings are errors there too, and no error may be logged; distributed logs warnings where the
    machine is busy.
    """
    (tmp_path / "script.py").write_text(code)
    on = ["-m", "cunorm.simgpu"] if simgpu.installed() else []
    done = subprocess.run(
        [sys.executable, "-W", "error", *on, tmp_path / "script.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"DASK_LOGGING__DISTRIBUTED": "error"},
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_program_without_dask_arrays_never_imports_dask(tmp_path):
    code = """
import sys, json, cupy, cunorm
x = cupy.ones((2, 8), "float32")
cunorm.rms_norm(x, x[0])
for wrong in ([1.0], x[0].get()):
    try:
        cunorm.layer_norm(wrong)
    except TypeError:
        pass
    else:
        sys.exit("not refused")
print(json.dumps([name for name in sys.modules if name.split(".")[0] in ("dask", "distributed")]))
"""
    assert run(code, tmp_path) == []


def test_two_workers_equal_one_array(tmp_path):
    code = """
import json, os, sys
import cupy, dask.array as da, ml_dtypes, numpy as np
from dask.distributed import Client, LocalCluster, wait
import cunorm

def launched():  # in a worker
    from cunorm._call import remembered
    return os.getpid(), sorted(kind[0].name for kind in remembered._known)

def main():
    report = {"equal": [], "here": os.getpid()}
    draw = np.random.default_rng(0).standard_normal
    with (
        LocalCluster(
            n_workers=2, processes=True, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2)
        for dtype in ("float16", ml_dtypes.bfloat16, "float32", "float64"):
            x = draw((24, 3, 40)).astype(dtype)
            gamma, beta = (cupy.asarray(draw(40).astype("float32")) for _ in range(2))
            chunked_beta = da.from_array(beta.get(), chunks=-1).map_blocks(cupy.asarray)
            chunked = da.from_array(x, chunks=(2, 3, 40)).map_blocks(cupy.asarray)
            for op, given in (
                (cunorm.rms_norm, (gamma,)),
                (cunorm.layer_norm, (gamma, chunked_beta)),
            ):
                y = op(chunked, *given).map_blocks(cupy.asnumpy).compute()
                one = op(cupy.asarray(x), gamma, *([beta] if len(given) > 1 else []))
                report["equal"].append(y.dtype == dtype and y.tobytes() == one.get().tobytes())
        report["workers"] = list(client.run(launched).values())
    print(json.dumps(report))

if __name__ == "__main__":
    main()
"""
    report = run(code, tmp_path)
    assert report["equal"] == [True] * 8
    processes = {process for process, _ in report["workers"]}
    assert len(processes - {report["here"]}) == 2
    for _, launched in report["workers"]:
        assert {"rms_norm", "layer_norm"} <= set(launched)
