"""README says what is so: its snippets run as pasted, and CI runs its commands as written."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cunorm

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
FILES = "https://github.com/cunorm/cunorm/blob/main/"
IMAGES = "https://raw.githubusercontent.com/cunorm/cunorm/main/"
QUIET = os.environ | {"DASK_LOGGING__DISTRIBUTED": "error"}  # it warns of a busy machine


def fences():
    """Return every code block: its language and its text."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language):
    """Return the code blocks of one language."""
    return [text for name, text in fences() if name == language]


def snippets():
    """Return each Python block with the block after it, which shows what it prints."""

    def line(script):
        return README[: README.index(script)].count("\n") + 1

    return [
        pytest.param(script, printed, id=f"line {line(script)}")
        for (name, script), (_, printed) in itertools.pairwise(fences())
        if name == "python"
    ]


@pytest.mark.parametrize(("script", "printed"), snippets())
def test_a_snippet_runs_as_pasted_and_prints_what_is_below_it(tmp_path, script, printed):
    (tmp_path / "example.py").write_text(script)
    run = subprocess.run(
        [sys.executable, "-m", "cunorm.simgpu", tmp_path / "example.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=QUIET,
        timeout=300,
    )
    assert run.stderr == ""
    assert run.stdout == printed


def test_every_snippet_is_followed_by_what_it_prints():
    followed = [after for (name, _), (after, _) in itertools.pairwise(fences()) if name == "python"]
    assert followed == [""] * len(blocks("python"))


def test_the_first_example_is_eight_lines_of_code_or_fewer():
    script = blocks("python")[0]
    assert len([line for line in script.splitlines() if line]) <= 8


def test_ci_runs_the_two_commands_as_written():
    run = subprocess.run(
        ["bash", ROOT / ".ci" / "run", "--list"], capture_output=True, text=True, check=True
    )
    commands = [line for block in blocks("bash") for line in block.splitlines() if "venv" in line]
    assert run.stdout.splitlines() == commands
    assert len(commands) == 2
    assert "cunorm check --data tests/data/smollm2_rms_norm.npz" in commands[0]
    assert commands[1].endswith("-m pytest -n auto")


def test_every_file_and_section_that_readme_links_to_exists():
    links = [
        link.removeprefix(FILES).removeprefix(IMAGES)
        for link in re.findall(r"\]\(([^)]+)\)", README)
        if link.startswith((FILES, IMAGES)) or "://" not in link
    ]
    titles = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    sections = {"#" + re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    assert links
    assert [link for link in links if link not in sections and not (ROOT / link).exists()] == []


def test_links_to_files_work_where_pypi_shows_the_page():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert [link for link in links if not link.startswith(("#", "https://"))] == []


def test_every_public_op_is_in_the_table():
    assert [name for name in cunorm.__all__ if f"`{name}(" not in README] == []
