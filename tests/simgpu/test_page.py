"""The subpackage's page says what is so, and the subpackage is shaped as it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cunorm.simgpu

HOME = Path(cunorm.simgpu.__file__).parent
PAGE = (HOME / "README.md").read_text("utf-8")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HOME.parents[1])}
SOURCES = sorted([*HOME.rglob("*.py"), *HOME.glob("*.c"), *HOME.glob("*.pyi")])


def section(title):
    """Return the code blocks of one section, as (language, text)."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (found,) = [part for part in text if part.startswith(title + "\n")]
    return re.findall(r"^```(\w*)\n(.*?)^```$", found, re.MULTILINE | re.DOTALL)


def python(folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_conftest_and_the_test_work_as_pasted(tmp_path):
    conftest, test = [text for language, text in section("In your own project's tests")]
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_fill.py").write_text(test)
    done = python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^1 (passed|skipped)", done.stdout, re.MULTILINE)


def test_the_fault_reads_as_printed(tmp_path):
    (_, program), (_, printed) = section("How to read a fault")
    (tmp_path / "put.py").write_text(program)
    done = python(tmp_path, "-m", "cunorm.simgpu", "put.py")

    def told(text):
        return re.sub(r"0x[0-9a-f]+", "ADDRESS", " ".join(text.split()))

    assert told(done.stderr).endswith(told(printed))
    assert done.stderr.splitlines()[1].startswith('  File "put.py", line ')


def test_the_profile_counts_as_printed(tmp_path):
    (_, _), (_, program), (_, printed) = section("Profiler")
    (tmp_path / "transpose.py").write_text(program)
    done = python(tmp_path, "-m", "cunorm.simgpu", "--profile", "transpose.py")

    def told(text):
        # Registers and instructions are those of one version of NVRTC.
        launches, by_array, _ = text.strip().split("\n\n")
        return [line.split()[:2] + line.split()[-3:] for line in launches.splitlines()], by_array

    assert told(done.stderr) == told(printed)


def test_registered_memory_is_changed_as_the_page_says(tmp_path):
    ((_, program),) = section("Memory of another library's")
    (tmp_path / "lend.py").write_text(program + "print(host.tolist())\n")
    done = python(tmp_path, "-m", "cunorm.simgpu", "lend.py")
    assert (done.stdout, done.stderr) == (f"{[float(n) for n in range(1, 11)]}\n", "")


def test_every_link_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in link]
    assert links
    assert [link for link in links if not (HOME / link).exists()] == []


def test_every_option_of_the_command_line_is_on_the_page():
    options = re.findall(r"^  (--[\w-]+)", python(HOME, "-m", "cunorm.simgpu", "-h").stdout, re.M)
    assert {"--arch", "--devices", "--memory"} < set(options)
    assert [option for option in options if f"`{option}`" not in PAGE] == []


NORMS = re.compile(r"(?i)(rms|layer)_?norm|\bnorms?\b|\bgamma\b")
# Linear algebra has norms of vectors, and statistics have a gamma distribution.
NORMS_OF_ROWS = re.compile(r"(?i)(rms|layer)_?norm")
OUTSIDE = re.compile(r"^\s*(from|import) cunorm(?!\.simgpu)", re.MULTILINE)


def test_no_file_knows_of_norms_or_of_the_package_around_it():
    for source in SOURCES:
        text = source.read_text("utf-8")
        beyond = rf"^\s*from \.{{{len(source.relative_to(HOME).parts) + 1},}}"
        norms = NORMS_OF_ROWS if source.parent.name == "stand_ins" else NORMS
        assert not norms.search(text), source
        assert not OUTSIDE.search(text), source
        assert not re.search(beyond, text, re.MULTILINE), source


# Longer files, and why each is one: CuPy's two tables are one list, read beside CuPy's own.
LONG = {"tables.c": 600}


def test_no_file_is_longer_than_a_reader_holds_in_mind():
    lengths = {source.name: len(source.read_text("utf-8").splitlines()) for source in SOURCES}
    assert {name: n for name, n in lengths.items() if n > LONG.get(name, 310)} == {}
