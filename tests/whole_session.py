"""The files of tests that one process must run, since a test asks what all of them did."""

# test_forms.py asks at the end whether each form of each instruction was run.
OF_INSTRUCTIONS = ("asynchronous", "bulk_copies", "cluster", "mbarrier", "warps")


def runs_instructions(name: str) -> bool:
    """Return whether a file of tests/simgpu is among those that run instructions."""
    return name.startswith("test_isa_") or name in {f"test_{each}.py" for each in OF_INSTRUCTIONS}
