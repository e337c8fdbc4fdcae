"""README and docs/ say what is so: snippets run as pasted, and CI runs commands as written."""

import contextlib
import io
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
PAGES = {page.name: page.read_text("utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
FILES = "https://github.com/cunorm/cunorm/blob/main/"
IMAGES = "https://raw.githubusercontent.com/cunorm/cunorm/main/"
QUIET = os.environ | {"DASK_LOGGING__DISTRIBUTED": "error"}  # it warns of a busy machine


def fences(page=README):
    """Return every code block: its language and its text."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def blocks(language):
    """Return the code blocks of one language."""
    return [text for name, text in fences() if name == language]


def snippets(name, page):
    """Return each Python block with the block after it, which shows what it prints."""

    def line(script):
        return page[: page.index(script)].count("\n") + 1

    return [
        pytest.param(script, printed, id=f"{name} line {line(script)}")
        for (language, script), (_, printed) in itertools.pairwise(fences(page))
        if language == "python"
    ]


@pytest.mark.parametrize(("script", "printed"), snippets("README.md", README))
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


@pytest.mark.parametrize(
    ("script", "printed"), [each for name, page in PAGES.items() for each in snippets(name, page)]
)
def test_a_snippet_of_a_page_prints_what_is_below_it(script, printed):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(script, "example.py", "exec"), {"__name__": "__main__"})
    assert out.getvalue() == printed


@pytest.mark.parametrize("page", [README, *PAGES.values()], ids=["README.md", *PAGES])
def test_every_snippet_is_followed_by_what_it_prints(page):
    scripts = [name for name, _ in fences(page)].count("python")
    pairs = itertools.pairwise(fences(page))
    assert [after for (name, _), (after, _) in pairs if name == "python"] == [""] * scripts


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


@pytest.mark.parametrize(
    ("folder", "page"),
    [(ROOT, README), *((ROOT / "docs", page) for page in PAGES.values())],
    ids=["README.md", *PAGES],
)
def test_every_file_and_section_that_a_page_links_to_exists(folder, page):
    links = re.findall(r"\]\(([^)]+)\)", page)
    if page is README:
        links = [link.removeprefix(FILES).removeprefix(IMAGES) for link in links]
    links = [link for link in links if "://" not in link]
    titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    sections = {"#" + re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    assert links or page is not README
    assert [link for link in links if link not in sections and not (folder / link).exists()] == []


def test_links_to_files_work_where_pypi_shows_the_page():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert [link for link in links if not link.startswith(("#", "https://"))] == []


def test_every_public_op_is_in_the_table():
    assert [name for name in cunorm.__all__ if f"`{name}(" not in README] == []
