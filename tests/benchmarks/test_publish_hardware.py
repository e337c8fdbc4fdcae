"""The tables of docs/benchmarks.md for hardware, of made-up results: none of these is a time."""

import json
import re

import publish_hardware
import pytest

from cunorm._bench import results
from cunorm._bench.cases import Case
from cunorm._bench.results import Run
from cunorm._bench.times import Times
from cunorm._bench.timing import Sample


def sample(us):
    return Sample(us, us - 0.5, us + 0.5, us - 1, 56, 160)


def times(op="rms_norm", systems=None, failed=None, **case):
    case = {"dtype": "bfloat16", "cols": 4096, "rows": 2048} | case
    assert Case(op, **case)
    return Times(
        op=op,
        **case,
        sets=7,
        systems={name: sample(us) for name, us in (systems or {}).items()},
        copies={"memcpy": sample(9.0), "copy kernel": sample(8.0)},
        failed=failed or {},
    )


@pytest.fixture
def card(tmp_path, monkeypatch):
    """Write a file of results as `bench --json` does, of a card that nobody makes."""
    folder = tmp_path / "hardware"
    folder.mkdir()
    told = results.card() | {"name": "A card of the tests", "driver": "1.2.3"}
    monkeypatch.setattr(results, "card", lambda: told)

    def write(*cases, name="a card"):
        versions = {"torch": "torch 9.9", "liger": "liger_kernel 8.8"}
        run = Run(versions, {"quack": "ModuleNotFoundError: No module"}, "ab" * 20, "2030-01-02T")
        file = folder / f"{name}.json"
        results.save(run, sample(1.5), [results.as_case(case) for case in cases], file)
        return folder

    return write


def test_the_page_shows_what_the_files_say():
    _, shown, _ = publish_hardware.split(
        publish_hardware.PAGE.read_text("utf-8"), publish_hardware.BEGIN
    )
    assert shown == publish_hardware.section(publish_hardware.read())


def test_without_a_file_nothing_is_claimed(tmp_path):
    assert publish_hardware.read(tmp_path) == []
    said = publish_hardware.section([])
    assert said.startswith("None yet: ")
    assert "|" not in said


def test_a_card_is_drawn_with_all_that_its_times_depend_on(card):
    folder = card(
        times(systems={"cunorm": 10.0, "torch": 18.0, "liger": 9.0}),
        times(cols=64, rows=1, warm=True, systems={"cunorm": 2.0}, failed={"liger": "a | b"}),
        times(op="layer_norm", offset=1, systems={"torch": 7.0}, failed={"cunorm": "off by 1"}),
    )
    said = publish_hardware.section(publish_hardware.read(folder))
    assert said.startswith("### A card of the tests\n\nsm_")
    head = said.replace("\n", " ")
    assert re.search(r"driver 1\.2\.3, CUDA \d+\.\d; cunorm ", head)
    assert "commit abababa, 2030-01-02. An empty kernel takes 1.50 µs." in head
    assert "- torch: torch 9.9\n" in said
    assert "- quack: absent (ModuleNotFoundError: No module)\n" in said
    assert "- liger failed `rms_norm`, 1 of its cases: a / b\n" in said
    table = [line for line in said.splitlines() if line.startswith("|")]
    # 33.6 MB in 10 us; the faster copy takes 8.
    assert table == [
        "| op | dtype | rows · N | µs | ± | GB/s | of a copy | torch | liger |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| `rms_norm` | bf16 | 2,048 · 4,096 | 10.00 | 10 % | 3,356 | 80 % | 1.80 | **0.90** |",
        "| `rms_norm` | bf16 | 1 · 64, warm | 2.00 | 50 % | 0 | 400 % |  | failed |",
        "| `layer_norm` | bf16 | 2,048 · 4,096 + 1 | failed |  |  |  | 7.00 µs |  |",
    ]


def test_every_card_is_written_into_the_page_and_all_else_stays(card, tmp_path):
    one = times(systems={"cunorm": 10.0})
    card(one, name="b")
    folder = card(one, name="a")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{publish_hardware.BEGIN}old\n<!-- end -->\nafter\n")
    publish_hardware.main(folder, page)
    text = page.read_text("utf-8")
    assert text.startswith(f"before\n{publish_hardware.BEGIN}### A card of the tests\n")
    assert text.endswith("|\n<!-- end -->\nafter\n")
    assert text.count("### A card of the tests\n") == 2
    assert "old" not in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda told: "no JSON", "is no JSON: "),
        (lambda told: json.dumps(told | {"schema": 2}), "has schema 2, not 1: time that card anew"),
        (lambda told: "[]", "has schema None, not 1"),
        (
            lambda told: json.dumps(told | {"card": told["card"] | {"name": "cunorm.simgpu"}}),
            "is of a software GPU, which takes no times",
        ),
    ],
)
def test_a_file_that_cannot_be_drawn_is_named_with_its_fault(card, change, says):
    folder = card(times(systems={"cunorm": 10.0}))
    file = folder / "a card.json"
    file.write_text(change(json.loads(file.read_text("utf-8"))))
    with pytest.raises(SystemExit) as ended:
        publish_hardware.read(folder)
    assert str(ended.value).startswith(f"{file} {says}")


def test_a_page_without_marks_is_an_error(card, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    with pytest.raises(SystemExit, match="has not both marks"):
        publish_hardware.main(card(), page)
