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

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
FILES = "https://github.com/cunorm/cunorm/blob/main/"
IMAGES = "https://raw.githubusercontent.com/cunorm/cunorm/main/"
QUIET = os.environ | {"DASK_LOGGING__DISTRIBUTED": "error"}  # it warns of a busy machine
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COLUMNS, LINES = 100, 210


def text(page):
    return page.read_text("utf-8")


def fences(page):
    """Return every code block: its language and its text."""
    return FENCE.findall(text(page))


def unfenced(page):
    """Return what is not in a code block."""
    return FENCE.sub("", text(page))


def blocks(language):
    """Return README's code blocks of one language."""
    return [code for name, code in fences(README) if name == language]


def snippets():
    """Return each Python block with the block after it, which shows what it prints."""

    def line(page, script):
        whole = text(page)
        return whole[: whole.index(script)].count("\n") + 1

    return [
        pytest.param(
            page,
            script,
            printed,
            marks=() if page == README else pytest.mark.slow("a kernel or two each"),
            id=f"{page.name} line {line(page, script)}",
        )
        for page in PAGES
        for (language, script), (_, printed) in itertools.pairwise(fences(page))
        if language == "python"
    ]


def of_each_page(pages):
    return pytest.mark.parametrize("page", pages, ids=[page.name for page in pages])


def printed_as_pasted(script, folder):
    """Return what a script prints, and says on the standard error, on the software GPU."""
    (folder / "example.py").write_text(script)
    run = subprocess.run(
        [sys.executable, "-m", "cunorm.simgpu", folder / "example.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=QUIET,
        timeout=300,
    )
    return run.stdout, run.stderr


def printed_here(script):
    """Return the same of a script that this process runs, which takes less time."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        exec(compile(script, "example.py", "exec"), {"__name__": "__main__"})
    return out.getvalue(), err.getvalue()


@pytest.mark.parametrize(("page", "script", "printed"), snippets())
def test_a_snippet_prints_what_is_below_it(page, script, printed, tmp_path):
    # What has workers starts them from a file, and README's is run as a reader runs it.
    alone = page == README or "__main__" in script
    told = printed_as_pasted(script, tmp_path) if alone else printed_here(script)
    assert told == (printed, "")


@of_each_page(PAGES)
def test_every_snippet_is_followed_by_what_it_prints(page):
    scripts = [name for name, _ in fences(page)].count("python")
    pairs = itertools.pairwise(fences(page))
    assert [after for (name, _), (after, _) in pairs if name == "python"] == [""] * scripts


def test_the_first_example_is_eight_lines_of_code_or_fewer():
    script = blocks("python")[0]
    assert len([line for line in script.splitlines() if line]) <= 8


def commands():
    return [line for block in blocks("bash") for line in block.splitlines() if "venv" in line]


def test_ci_runs_the_two_commands_as_written():
    run = subprocess.run(
        ["bash", ROOT / ".ci" / "run", "--list"], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == commands()
    assert len(commands()) == 2
    assert "cunorm check --data tests/data/smollm2_rms_norm.npz" in commands()[0]
    assert commands()[1].endswith("-m pytest -n auto")


def links(page):
    """Return where a page's links lead, those that are defined apart from their text too."""
    inline = re.findall(r"\]\(([^)\s]+)\)", unfenced(page))
    return inline + re.findall(r"^\[[^\]]+\]: (\S+)$", unfenced(page), re.MULTILINE)


def sections(page):
    """Return the anchors that GitHub and the site give to the titles of a page."""
    titles = re.findall(r"^#+ (.*)$", unfenced(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def leads_somewhere(page, link):
    """Return whether a link to a file of the project, or a section of it, finds that."""
    path, _, section = link.partition("#")
    target = (page.parent / path) if path else page
    return target.exists() and (not section or section in sections(target))


@of_each_page(LINKING)
def test_every_file_and_section_that_a_page_links_to_exists(page):
    of_project = [link.removeprefix(FILES).removeprefix(IMAGES) for link in links(page)]
    of_project = [link for link in of_project if "://" not in link]
    assert of_project or page != README
    assert [link for link in of_project if not leads_somewhere(page, link)] == []


def test_links_to_files_work_where_pypi_shows_the_page():
    assert [link for link in links(README) if not link.startswith("https://")] == []


@of_each_page([page for page in PAGES if page != README])
def test_links_to_files_from_a_page_are_relative(page):
    assert [link for link in links(page) if link.startswith((FILES, IMAGES))] == []


def test_every_link_of_readme_is_defined_and_every_definition_used():
    defined = re.findall(r"^\[([^\]]+)\]: ", text(README), re.MULTILINE)
    used = re.findall(r"\]\[([^\]]+)\]", unfenced(README))
    assert sorted(set(used)) == defined


def test_readme_leads_to_every_page():
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES[1:]} - {"docs/index.md"}
    assert pages - {link.removeprefix(FILES).partition("#")[0] for link in links(README)} == set()


@of_each_page(PAGES)
def test_every_test_and_file_that_a_page_names_exists(page):
    named = re.findall(r"\b(?:tests|examples)/[\w/-]+\.\w+", text(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_public_op_is_in_the_table():
    assert [name for name in cunorm.__all__ if f"`{name}(" not in text(README)] == []


def test_readme_is_short_and_narrow():
    lines = text(README).splitlines()
    assert len(lines) <= LINES
    assert [line for line in lines if len(line) > COLUMNS] == commands()  # CI reads each as a line


@of_each_page(PAGES)
def test_prose_is_narrow(page):
    lines = [line for line in unfenced(page).splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > COLUMNS] == []


def test_the_citation_is_of_this_version():
    cited = dict(
        line.split(": ", 1)
        for line in (ROOT / "CITATION.cff").read_text().splitlines()
        if ": " in line
    )
    assert cited["version"] == cunorm.__version__
