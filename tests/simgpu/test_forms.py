"""Every form of the table of instructions is run by a test, and written on the page about them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from one_instruction import EXERCISED

from cunorm import simgpu
from cunorm.simgpu import isa
from cunorm.simgpu.isa import page as instructions

FORMS = [form for forms in isa.FORMS.values() for form in forms]
PAGE = Path(simgpu.__file__).with_name("INSTRUCTIONS.md")


def words(form):
    """Return every field of a form with every word that may stand there, None for nothing."""
    wanted = {("", "")}
    for item in form.pattern.split()[1:]:
        choices, _, name = item.strip("[]").partition(":")
        name = re.sub("[^A-Za-z0-9_]", "_", name or choices)
        wanted.update((name, choice.replace("=", "::")) for choice in choices.split("|"))
        if item.startswith("["):
            wanted.add((name, None))
    return wanted


@pytest.mark.last
@pytest.mark.parametrize("form", FORMS, ids=lambda form: instructions.spelled(form.pattern)[:60])
def test_every_word_of_every_form_was_run_by_a_test(form, whole_session):
    assert not {word for word in words(form) if (form.pattern, *word) not in EXERCISED}


def test_no_form_hides_another():
    # Of two forms that spell one opcode only the first would ever be found.
    for several in isa.FORMS.values():
        patterns = [form.pattern for form in several]
        assert len(set(patterns)) == len(patterns)


def test_the_page_of_instructions_is_current():
    assert PAGE.read_text(encoding="utf-8") == instructions.page()


def test_the_command_prints_the_page():
    ran = subprocess.run(
        [sys.executable, "-m", "cunorm.simgpu", "--instructions"],
        capture_output=True, text=True, check=True, cwd=Path(simgpu.__file__).parents[2],
    )  # fmt: skip
    assert ran.stdout == instructions.page()


@pytest.mark.parametrize(
    ("pattern", "spelled"),
    [
        ("add [rn|rz:mode] [ftz] f32:type", "add[.rn|.rz][.ftz].f32"),
        ("mul lo|hi:part u32|s32:type", "mul(.lo|.hi)(.u32|.s32)"),
        ("cvta [to] shared=cta:space u64", "cvta[.to].shared::cta.u64"),
    ],
)
def test_forms_are_spelled_as_the_isa_spells_them(pattern, spelled):
    assert instructions.spelled(pattern) == spelled
