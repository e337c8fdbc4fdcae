"""What serves a launch: a measured line of its kind, or its plan, by the number of rows."""

import csv

import plans
import pytest

from cunorm import _plan
from cunorm._plan import Split, Way, tuning
from cunorm._plan.tuning import NO_LIMIT, Line

DEVICE = _plan.Device(90, 132, "NVIDIA H100 80GB HBM3")
MANY = 10**6


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CUNORM_CACHE_DIR", str(tmp_path))
    tuning.lines.cache_clear()
    return tmp_path


def rms(cols, dtype="float16", arch=90):
    return plans.rms_norm(cols, dtype, dtype, arch=arch)


def split(plan, rows, *, aligned=True, device=DEVICE):
    return tuning.served(plan, device, rows, aligned=aligned).split


def line(cols=4096, aligned=1, fewest=1, most=NO_LIMIT, way=(64, 1, 8, 0, 1), **changed):
    made = Line("rms_norm", "float16", "gamma", cols, aligned, fewest, most, *way, 0, 0, "a test")
    return made._replace(**changed)


@pytest.mark.parametrize(
    ("cols", "dtype", "few", "many"),
    [
        *((4096, "float16", (256, 2), (128, 4)), (8192, "bfloat16", (512, 2), (256, 4))),
        *((4096, "float32", (512, 2), (256, 4)), (5125, "float16", (320, 2), (160, 4))),
        # A lane has a leaf of the tree at least.
        *((72, "float16", (4, 3), (4, 3)), (1024, "float16", (32, 4), (32, 4))),
        *((16384, "float16", (512, 4), (512, 4)),),
    ],
)
def test_few_rows_have_more_lanes_each(cols, dtype, few, many):
    plan = rms(cols, dtype)
    for rows, wanted in ((1, few), (132, few), (133, many), (MANY, many)):
        for aligned in (True, False):
            found = split(plan, rows, aligned=aligned)
            assert (found.lanes, found.packets) == wanted, (rows, aligned)


@pytest.mark.parametrize(
    ("plan", "has"),
    [
        (rms(1024), False),  # a warp, whose gamma is on its way with x in any case
        (plans.layer_norm(1024, "float16", "float16", "float16"), True),
        (rms(2048), True),
        (rms(20000), False),  # in shared memory in part
        (plans.layer_norm(96, "float16", "float16", "float16"), False),  # less than a warp
    ],
)
def test_kernels_of_few_rows_are_built_for_the_time_that_a_lane_waits(plan, has):
    few, many = (tuning.served(plan, DEVICE, rows, aligned=True) for rows in (132, 133))
    assert (few.few, many.few) == (has, False)
    if has:
        assert few.split.rows == 1  # of which each has a multiprocessor
        reach = _plan.Reach(tuple((n, "ALIGNED") for n in (*few.of_rows, *few.parameters)))
        attempt = next(few.tries(reach))
        assert attempt.blocks == 1
        assert "FEW = 1;" in few.unit(reach, attempt)


def test_rows_that_1024_lanes_keep_in_registers_need_no_shared_memory():
    for rows in (1, MANY):
        assert split(rms(24576), rows) == Split(1024, 1, 3, 0, 1, 3)
        assert split(rms(24576), rows, aligned=False) == Split(512, 1, 4, 2, 1, 3)
        assert split(rms(28672), rows) == Split(448, 1, 4, 4, 1, 2)
        # By a line that comes with the package: of float16 64 registers hold four packets, too.
        assert split(rms(32768), rows) == Split(1024, 1, 4, 0, 1, 2)
        assert split(rms(32768, "bfloat16"), rows) == Split(512, 1, 4, 4, 1, 2)


def test_a_line_serves_the_rows_that_it_says(cache):
    tuning.write(tuning.file_of(DEVICE), [line(fewest=8, most=15), line(cols=128)])
    plan = rms(4096)
    own = [split(plan, rows) for rows in (7, 16, MANY)]
    assert [found.lanes for found in own] == [256, 256, 128]
    assert [split(plan, rows).lanes for rows in (8, 15)] == [64, 64]


@pytest.mark.parametrize(
    "other",
    [
        *(
            line(dtype="bfloat16"),
            line(kernel="add_rms_norm"),
            line(parameters=""),
            line(cols=4088),
        ),
        line(aligned=0),
    ],
    ids=lambda other: " ".join(map(str, other[:5])),
)
def test_a_line_serves_no_other_kind(cache, other):
    tuning.write(tuning.file_of(DEVICE), [other])
    assert split(rms(4096), MANY).lanes == 128


def test_a_line_is_of_one_device(cache):
    tuning.write(tuning.file_of(DEVICE), [line()])
    assert split(rms(4096), MANY, device=DEVICE._replace(name="NVIDIA H200")).lanes == 128


def test_the_users_lines_come_before_those_of_the_package(cache, monkeypatch):
    shipped = cache / "shipped.csv"
    tuning.write(shipped, [line(way=(256, 1, 2, 0, 1)), line(cols=8192, way=(512, 1, 2, 0, 1))])
    monkeypatch.setattr(tuning, "SHIPPED", shipped)
    tuning.write(tuning.file_of(DEVICE), [line()])
    assert [split(rms(cols), MANY).lanes for cols in (4096, 8192)] == [64, 512]


def test_every_line_of_the_package_is_a_way_that_there_is():
    with tuning.SHIPPED.open(encoding="utf-8") as text:
        assert tuple(next(csv.reader(text))) == Line._fields
    for one in tuning.read(tuning.SHIPPED):
        assert one.source
        assert one.kernel == "rms_norm"  # say here how another is planned
        assert one.way(rms(one.cols, one.dtype).split.depth) in _plan.ways.ways(
            rms(one.cols, one.dtype)
        )


# Lanes that have no whole leaf; fewer packets than a lane has; lanes that nobody would take.
@pytest.mark.parametrize("way", [(512, 1, 1, 0, 1), (128, 1, 3, 0, 1), (100, 1, 6, 0, 1)])
def test_a_way_that_there_is_not_is_told_and_left_out(cache, way):
    tuning.write(tuning.file_of(DEVICE), [line(way=way)])
    with pytest.warns(RuntimeWarning, match="no kernel of this version goes that way"):
        assert split(rms(4096), MANY).lanes == 128


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kernel,dtype\n", "its first line must be kernel,dtype,parameters,cols"),
        (",".join(Line._fields) + "\nrms_norm,float16\n", "line 2: it must have kernel,dtype"),
        (
            ",".join(Line._fields) + "\n" + ",".join(map(str, line(cols="many"))) + "\n",
            "line 2: invalid literal for int.*'many'",
        ),
        (b"\xff\xfe", "can't decode"),
    ],
)
def test_a_broken_file_is_told_and_left_out(cache, text, why):
    file = tuning.file_of(DEVICE)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.warns(RuntimeWarning, match=f"cunorm does without what was tuned: .*{why}"):
        assert split(rms(4096), MANY).lanes == 128


def test_what_is_written_is_read(cache):
    found = [line(), line(parameters="", source="NVIDIA H100, 2026-11-27, 3 % faster")]
    file = tuning.file_of(DEVICE)
    tuning.write(file, found)
    assert list(tuning.read(file)) == found
    assert [path.name for path in cache.iterdir()] == ["tuned-NVIDIA-H100-80GB-HBM3.csv"]


def test_kernels_whose_lanes_say_more_than_who_adds_up_are_not_free(cache):
    plan = plans.rms_norm_rope_bwd(128, "float16", "float16")
    assert not plan.is_free
    assert tuning.served(plan, DEVICE, 1, aligned=True) == plan


def test_forced(cache):
    tuning.write(tuning.file_of(DEVICE), [line()])
    way = Way(Split(256, 1, 2, 0, 1, 2))
    with tuning.forced(way):
        assert split(rms(4096), MANY) == way.split
        with tuning.forced(None) as asked:
            assert split(rms(4096), 1).lanes == 64  # as many rows have it
            assert split(rms(2048), 1) == rms(2048).split
    assert [(served.rows, served.aligned) for served in asked] == [(1, True)] * 2
    assert split(rms(4096), MANY).lanes == 64
