"""`python -m cunorm tune`: what it times, what it keeps, and that calls follow it."""

from types import SimpleNamespace

import pytest
from arrays import bits

from cunorm.__main__ import main
from cunorm._bench import timing, tune
from cunorm._bench.cases import Case, arrays, call
from cunorm._call import remembered
from cunorm._launch import kernels
from cunorm._plan import Split, Way, tuning
from cunorm._plan.tuning import NO_LIMIT

CASE = Case("rms_norm", "float16", 128, 6)
OTHER = Way(Split(32, 1, 1, 0, 2, 1))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where what is tuned is kept, of nothing so far."""
    monkeypatch.setenv("CUNORM_CACHE_DIR", str(tmp_path / "cunorm"))
    tuning.lines.cache_clear()
    remembered.clear()
    yield tmp_path / "cunorm"
    tuning.lines.cache_clear()
    remembered.clear()


@pytest.fixture
def clock(monkeypatch):
    """A made-up clock: every way takes 2 us but one, and what was asked to be timed."""
    asked = []

    def compare(launches, **_):
        asked.append(launches)
        for calls in launches.values():
            calls[0]()
        return {
            way: SimpleNamespace(median=1.0 if way == OTHER else 2.0, spread=0.1)
            for way in launches
        }

    monkeypatch.setattr(timing, "compare", compare)
    return asked


def device():
    return kernels.device(0)


def served(case):
    given = arrays(case)
    built = []
    load = kernels.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "load", lambda plan, *rest: built.append(plan) or load(plan, *rest))
        y = call(case, given)
    return built[0].split, bits(y)


def test_the_best_way_is_kept_and_calls_follow_it(cache, clock):
    before, expected = served(CASE)
    tune.run([CASE], "a device")
    (launches,) = clock
    assert len(launches) > 5
    (line,) = tuning.read(tuning.file_of(device()))
    assert line.kind == ("rms_norm", "float16", "gamma", 128, 1)
    assert (line.fewest, line.most) == (4, 7)
    assert line.way(1) == OTHER
    assert "tune" in line.source
    remembered.clear()
    after, same = served(CASE)
    assert after == OTHER.split != before
    assert same == expected
    assert served(Case("rms_norm", "float16", 128, 8))[0] == before


def test_what_takes_no_less_by_more_than_the_spread_stays_as_planned(cache, monkeypatch, clock):
    compare = timing.compare

    def noisy(launches, **_):
        found = compare(launches)
        found[OTHER].spread = 0.6
        return found

    monkeypatch.setattr(timing, "compare", noisy)
    before, _ = served(CASE)
    tuned = tune.tune(CASE, device())
    assert tuned.best == tuned.planned == Way(before)
    assert "as planned" in str(tuned)


def test_a_shape_that_is_tuned_again_has_one_line(cache, clock):
    for _ in range(2):
        tune.run([CASE, Case("rms_norm", "float16", 128, 200)], "a device")
    assert [line.fewest for line in tuning.read(tuning.file_of(device()))] == [4, 128]


def test_many_rows_are_alike(cache, clock):
    many = 64 * device().multiprocessors
    tuned = tune.tune(Case("rms_norm", "float16", 8, 3), device())
    line = tune.line_of(
        tuned.__class__(**vars(tuned) | {"served": tuned.served._replace(rows=many)}), device()
    )
    assert line.fewest <= many
    assert line.most == NO_LIMIT


def test_a_way_that_gives_other_bits_is_not_timed(cache, monkeypatch, clock):
    go = tune._go

    def off(case, way, given):
        made = go(case, way, given)
        if way == OTHER:
            made[...] += 1
        return made

    monkeypatch.setattr(tune, "_go", off)
    tuned = tune.tune(CASE, device())
    assert OTHER not in clock[0]
    assert "other bits" in tuned.trouble[OTHER]


def test_where_the_planned_way_fails_nothing_is_kept(cache, monkeypatch, clock):
    monkeypatch.setattr(tune, "_go", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match="as it is planned: ZeroDivisionError"):
        tune.run([CASE], "a device")
    assert not tuning.file_of(device()).exists()


@pytest.mark.parametrize("op", ["layer_norm_bwd", "add_rms_norm"])
def test_other_ops(cache, clock, op):
    tune.run([Case(op, "float32", 64, 5)], "a device")
    (line,) = tuning.read(tuning.file_of(device()))
    assert line.kernel == op


@pytest.mark.simgpu
def test_without_a_device_it_says_so(capsys):
    assert main(["tune", "--cols", "4096", "--rows", "1"]) == 2
    assert "no CUDA device to take times on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--cols", "4096"], "--rows"),
        (["--rows", "1"], "--cols"),
        (["--cols", "0", "--rows", "1"], "must be a whole number of at least 1, not '0'"),
        (["--cols", "8", "--rows", "1", "--op", "rms"], "invalid choice: 'rms'"),
    ],
)
def test_wrong_arguments_are_refused(capsys, arguments, why):
    with pytest.raises(SystemExit) as ended:
        main(["tune", *arguments])
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


def test_a_broken_file_is_refused_before_anything_is_timed(cache, clock):
    file = tuning.file_of(device())
    file.parent.mkdir()
    file.write_text("nothing of ours\n")
    with pytest.raises(ValueError, match="its first line must be kernel,"):
        tune.run([CASE], "a device")
    assert clock == []
    assert file.read_text() == "nothing of ours\n"
