"""Draws what was timed on hardware into docs/benchmarks.md, from a file of results for each card.

    python -m cunorm bench --json tests/benchmarks/hardware/CARD.json    # on that card
    PYTHONPATH=tests python tests/benchmarks/publish_hardware.py

The files are as cunorm/_bench/results.py documents them; tests/hardware/stage2.sh leaves one too.
"""

import json
from collections import Counter
from pathlib import Path

from publish import PAGE, split, table

FOLDER = Path(__file__).parent / "hardware"
BEGIN = "<!-- tests/benchmarks/publish_hardware.py: begin -->\n"
SCHEMA = 1
NONE_YET = "None yet: nothing was timed on hardware, and so nothing is said of it.\n"
CARD = """\
### {name}

{arch}, {multiprocessors} multiprocessors, driver {driver}, CUDA {cuda}; cunorm {version}, commit
{commit}, {date}. An empty kernel takes {empty:.2f} µs.

{systems}

{table}"""
DTYPES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}


def read(folder=FOLDER):
    """Return the results of every card, in the order of their files' names."""
    return [_read(file) for file in sorted(folder.glob("*.json"))]


def _read(file):
    try:
        results = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise SystemExit(f"{file} is no JSON: {error}") from error
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA:
        raise SystemExit(f"{file} has schema {schema}, not {SCHEMA}: time that card anew")
    if "simgpu" in results["card"]["name"]:
        raise SystemExit(f"{file} is of a software GPU, which takes no times")
    return results


def section(cards):
    """Return what stands between the marks of the page."""
    return "\n".join(map(_card, cards)) or NONE_YET


def _card(results):
    card = results["card"]
    return CARD.format(
        name=card["name"],
        arch=card["arch"],
        multiprocessors=card["multiprocessors"],
        driver=card["driver"] or "unknown",
        cuda=results["cuda"]["runtime"],
        version=results["cunorm"]["version"],
        commit=(results["cunorm"]["commit"] or "unknown")[:7],
        date=results["date"][:10],
        empty=results["empty_kernel"]["median"],
        systems="\n".join([*_systems(results), *_failures(results)]),
        table=_table(results),
    )


def _systems(results):
    """Yield a line for each other system."""
    for name, said in results["systems"].items():
        yield f"- {name}: " + (said.get("version") or f"absent ({said['absent']})")


def _failures(results):
    """Yield a line for each way in which a system failed."""
    failed = Counter(
        (name, case["op"], said["failed"])
        for case in results["cases"]
        for name, said in case["systems"].items()
        if "failed" in said
    )
    for (name, op, why), often in failed.items():
        yield f"- {name} failed `{op}`, {often} of its cases: {why.replace('|', '/')}"


def _table(results):
    named = {name for case in results["cases"] for name in case["systems"]}
    others = [name for name in results["systems"] if name in named]
    head = ["op", "dtype", "rows · N", "µs", "±", "GB/s", "of a copy", *others]
    return table(head, [_line(case, others) for case in results["cases"]])


def _line(case, others):
    own = case["systems"]["cunorm"]
    shifted = f" + {case['offset']}" if case["offset"] else ""
    warm = ", warm" if case["warm"] else ""
    shape = f"{case['rows']:,} · {case['cols']:,}{shifted}{warm}"
    timed = ["failed", "", "", ""]
    if "failed" not in own:
        share = case["share_of_copy"]
        timed = [
            f"{own['median']:.2f}",
            _percent(own["spread"]),
            f"{case['gb_per_s']:,.0f}",
            "" if share is None else _percent(share),
        ]
    beside = [_beside(own, case["systems"].get(name)) for name in others]
    return [f"`{case['op']}`", DTYPES[case["dtype"]], shape, *timed, *beside]


def _beside(own, other):
    """Return how many times as long another system takes, or that it failed, or nothing."""
    if other is None:
        return ""
    if "failed" in other:
        return "failed"
    if "failed" in own:
        return f"{other['median']:.2f} µs"
    ratio = other["median"] / own["median"]
    return f"**{ratio:.2f}**" if ratio < 1 else f"{ratio:.2f}"


def _percent(share):
    return f"{100 * share:.0f} %"


def main(folder=FOLDER, page=PAGE):
    """Write the section into the page."""
    cards = read(folder)
    before, _, after = split(page.read_text("utf-8"), BEGIN)
    page.write_text(before + section(cards) + after, "utf-8")
    print(f"{len(cards)} cards in {page}")


if __name__ == "__main__":
    main()
