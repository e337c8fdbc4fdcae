"""Which tests a run takes: all that is not slow, and of the rest the shares of its commit."""

from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace

import pytest
from kinds import (
    BACKWARD,
    COLS,
    DTYPES,
    FORWARD,
    KINDS,
    LAYOUTS,
    OPTIONS,
    covering,
    in_pairs,
    of_each_kind,
)
from turns import TURNS

TESTS = Path(__file__).parents[1]
AXES = (range(6), range(4), "abc", (True, False))


def pairs_in(points):
    return {pair for point in points for pair in combinations(enumerate(point), 2)}


def test_each_pair_of_values_is_covered_by_a_part_of_the_product():
    covered = list(covering(AXES, "a seed"))
    assert pairs_in(covered) == pairs_in(product(*AXES))
    assert len(covered) < len(list(product(*AXES))) / 3
    assert covered == list(covering(AXES, "a seed"))


def test_a_grid_in_pairs_is_the_whole_product_and_what_is_not_slow_covers_it():
    names, points = in_pairs(a=AXES[0], b=AXES[1], c=AXES[2]).args
    assert names == "a,b,c"
    assert [point.values for point in points] == list(product(*AXES[:3]))
    always = [point.values for point in points if not point.marks]
    assert pairs_in(always) == pairs_in(product(*AXES[:3]))
    assert len(always) < len(points) / 2


def test_some_60_kinds_have_each_pair_of_what_a_kernel_is_compiled_for():
    axes = (FORWARD + BACKWARD, COLS, DTYPES, LAYOUTS, OPTIONS)
    assert pairs_in(covering(axes, "kinds")) == pairs_in(product(*axes))
    assert 60 <= len(KINDS) == len(set(KINDS)) <= 70


@pytest.fixture
def is_left_out(request):
    """What decides of a test, by its path and its marks, in a run of some paths of a commit."""
    conftest = request.config.pluginmanager.get_plugin(str(TESTS / "conftest.py"))

    def is_left_out(path, case, commit, *named, whole=True, slow=True, **of_mark):
        marks = {"slow": pytest.mark.slow("why", **of_mark).mark} if slow else {}
        item = SimpleNamespace(
            path=TESTS / path,
            nodeid=f"tests/{path}::test[{case}]",
            get_closest_marker=marks.get,
        )
        return conftest._is_left_out(item, commit, {TESTS / name for name in named}, whole)

    return is_left_out


@pytest.mark.parametrize("whole", [True, False])
def test_ten_commits_run_each_slow_case_once_in_runs_of_a_folder_too(is_left_out, whole):
    for case in range(50):
        left_out = [
            is_left_out("ops/test_a.py", case, share, "ops", whole=whole) for share in range(10)
        ]
        assert sorted(left_out) == [False] + [True] * 9
    shares = [[is_left_out("a.py", case, share) for case in range(200)] for share in range(10)]
    assert all(5 < share.count(False) < 45 for share in shares)


def test_what_says_in_how_many_shares_it_is_run_takes_as_many_commits(is_left_out):
    for case in range(50):
        left_out = [is_left_out("a.py", case, commit, shares=30) for commit in range(70, 100)]
        assert sorted(left_out) == [False] + [True] * 29
    assert all(is_left_out("a.py", case, 3, whole=False, shares=30) for case in range(50))
    assert not any(is_left_out("a.py", case, 3, "a.py", shares=30) for case in range(50))


def test_a_commit_runs_all_questions_of_a_kind_or_none_and_a_third_of_the_kinds(is_left_out):
    marks = {point.id: point.marks for point in of_each_kind(FORWARD).args[1]}
    assert {len(of_kind) for of_kind in marks.values()} == {1}
    runs = []
    for kind, (mark,) in marks.items():
        by_test = [
            [is_left_out(file, kind, commit, **mark.kwargs) for commit in range(3)]
            for file in ("ops/a.py", "ops/b.py")
        ]
        assert by_test[0] == by_test[1]
        assert sorted(by_test[0]) == [False, True, True]
        runs.append(by_test[0].index(False))
    assert all(runs.count(commit) > len(runs) / 6 for commit in range(3))


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("ops/test_a.py", "ops/test_a.py"),
        ("slow/test_a.py", "slow"),
        ("slow/test_a.py", "slow/test_a.py"),
    ],
)
def test_who_names_a_file_or_the_slow_folder_has_all_of_it(is_left_out, path, named):
    assert not any(is_left_out(path, case, 3, named, "unit") for case in range(50))
    assert any(is_left_out(path, case, 3, "unit") for case in range(50))


def test_what_is_not_slow_is_run_by_every_commit(is_left_out):
    assert not any(is_left_out("ops/a.py", case, 3, "ops", slow=False) for case in range(50))


def test_files_that_take_turns_are_there_and_have_a_reason():
    for file, why in TURNS.items():
        assert (TESTS / file).is_file()
        assert why
