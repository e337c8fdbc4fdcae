"""The tables and files that counters are shown in."""

import csv
import html
import io
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

from counted import count

from cunorm.simgpu.device.assembler import Resources
from cunorm.simgpu.profiler import report

BODY = """mul.wide.s32 %q1, %r0, 4; add.s64 %q2, %q0, %q1; ld.global.u32 %r9, [%q2];
  @%p0 st.global.u32 [%q2+4096], %r9;"""  # a predicate is false until it is set


def launch(**changes):
    return replace(count(BODY, grid=3, block=64), **changes)


KNOWN = Resources(40, 16, 8, 24)


def rows(text):
    """Return the cells of a table's lines, split where two spaces or more are."""
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.split("\n")
    ]


def test_a_launch_is_a_row():
    header, _, row, *_ = rows(report.table([launch(resources=KNOWN)]))
    assert dict(zip(header, row, strict=True)) == {
        "#": "1",
        "times": "1",
        "kernel": "k",
        "grid": "3",
        "block": "64",
        "regs": "40",
        "spills": "24",
        "shared": "0",
        "occupancy": "100 %",
        "instructions": "42",
        "no mov/cvta": "36",
        "conflicts": "0",
        "barriers": "0",
        "DRAM floor": "256",
    }


def test_columns_are_aligned():
    text = report.table([launch(kernel="a"), launch(kernel="longer", grid=(1, 2, 3))])
    lines = text.split("\n")
    at = lines[0].index("block")
    assert [line[at : at + 2] for line in lines[2:4]] == ["64", "64"]
    assert "1 x 2 x 3" in lines[3]
    assert not any(line.endswith(" ") for line in lines)


def test_arrays_and_classes_have_their_tables():
    text = report.table([launch()])
    assert ["1", "arg 0", "loads", "6", "768", "24", "8", "4.00", "3.00"] in rows(text)
    assert ["integer", "12"] in rows(text)
    assert ["all", "42"] in rows(text)
    # A store that no lane made has no row.
    assert "stores" not in text


def test_equal_launches_are_one_row():
    first = launch()
    moved = replace(first, arrays=tuple(replace(each, address=1) for each in first.arrays))
    text = report.table([first, launch(kernel="other"), moved])
    found = {row[2]: row[1] for row in rows(text)[2:4]}
    assert found == {"k": "2", "other": "1"}


def test_what_is_not_known_says_why():
    text = report.table([launch(resources=Resources(unknown="it fell from the sky"))])
    assert rows(text)[2][5:7] == ["-", "-"]
    assert "# 1: registers are not known: it fell from the sky" in text


def test_many_launches_stay_narrow_enough():
    text = report.table([launch(kernel=f"k{number}") for number in range(20)])
    assert max(map(len, text.split("\n"))) < 160
    assert "# 20" in text


def test_no_launch_is_said():
    assert report.table([]) == "no kernel was launched\n"


def test_csv_has_a_line_a_launch_and_zeros_for_classes_it_lacks():
    other = launch(kernel="other", classes={"fence": 3})
    first, second = csv.DictReader(io.StringIO(report.as_csv([launch(resources=KNOWN), other])))
    assert (first["kernel"], first["grid_x"], first["block_x"]) == ("k", "3", "64")
    assert (first["registers"], first["spill_stores"], first["loads_sectors"]) == ("40", "16", "24")
    assert (first["load_global"], first["fence"]) == ("6", "0")
    assert (second["load_global"], second["fence"]) == ("0", "3")
    assert second["registers"] == ""


def test_json_has_everything():
    (found,) = json.loads(report.as_json([launch(resources=KNOWN)]))
    assert found["resources"]["registers"] == 40
    assert found["opcodes"]["ld.global.u32"] == 6
    assert found["arrays"][0]["loads"]["distinct"] == 8
    assert found["grid"] == [3, 1, 1]


def test_a_notebook_shows_the_same_cells_escaped():
    told = launch(kernel="sum<float, 4>", resources=Resources(unknown="a & b"))
    marked = report.as_html([told])
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", marked)
    plain = [cell for row in rows(report.table([told])) for cell in row]
    assert {html.unescape(cell) for cell in cells} <= set(plain)
    assert "sum&lt;float, 4&gt;" in cells
    assert "registers are not known: a &amp; b" in marked
    ElementTree.fromstring(f"<div>{marked}</div>")
    assert report.as_html([]) == "<p>no kernel was launched</p>"
