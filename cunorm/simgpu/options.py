"""What the simulated devices of a process may be asked to be."""

from __future__ import annotations

from typing import NamedTuple


class Options(NamedTuple):
    """What `cunorm.simgpu.install` takes, and says the meaning of."""

    arch: int = 90
    devices: int = 1
    memory: int = 8 << 30
    uninitialised: bool = False
    warp_races: bool = False
    budget: int = 50_000_000  # ten minutes of polling memory, at 90,000 a second on one core
    stand_ins: bool = True


DEFAULT = Options()
