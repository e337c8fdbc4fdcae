"""`python -m cunorm check`, shared out to processes: python -m hardware.selfcheck WORKERS SECONDS

The command compiles some 300 kernels, one after the other; afterwards it finds them in CuPy's disk
cache.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from typing import Any

from .compiling import in_processes
from .session import DRY, Lines, log, start_device

Found = list[dict[str, Any]]


def shard(index: int, count: int) -> Found:
    """Run every `count`-th check from `index` on; return what came of each."""
    start_device()
    from cunorm._selfcheck import checks as checks_of

    checks = list(checks_of.grid())[index::count]
    return [{"check": str(check), **asdict(check.run())} for check in checks]


def main(workers: int, timeout: float) -> int:
    """Run all checks, in a dry run a few; return whether any was off, or not run."""
    lines, done, off = Lines("selfcheck.jsonl"), 0, 0
    shards = 96 if DRY else 4 * workers
    work = [partial(shard, index, shards) for index in range(1 if DRY else shards)]
    for _, found, why in in_processes(work, workers, timeout):
        if found is None:
            log("a process failed:", why)
            off += 1
            continue
        for outcome in found:
            lines.add(**outcome)
            done += 1
            if outcome["faults"]:
                off += 1
                print(f"  OFF {outcome['check']}: {'; '.join(outcome['faults'])}"[:300])
    log(f"{done} checks, {off} off")
    return int(off > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
