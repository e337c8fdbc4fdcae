"""The software GPU's packages import downwards alone, for types and inside functions too."""

import ast
import shutil
from functools import cache
from pathlib import Path

import pytest

import cunorm.simgpu

HOME = Path(cunorm.simgpu.__file__).parent
AROUND = "cunorm"  # the package around it, which absolute names begin with
# From the top down: what stands here imports only from what follows it.
LAYERS = [
    *("startup", "__main__", "pytest_plugin", "__init__"),
    *("cuda", "stand_ins", "profiler", "execution", "isa", "sync", "sanitizer", "device", "ptx"),
    "memory",
    *("children", "_toolchain", "options", "lanes", "faults", "_access", "_fma", "_tables"),
]


def modules(home):
    """Return the files of a package by the dotted names of their modules, its own name first."""
    found = {}
    for file in [*home.rglob("*.py"), *home.rglob("*.pyi")]:
        parts = file.relative_to(home.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@cache
def statements(text):
    """Return the import statements of a module: anywhere in it, for types too."""
    return [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Import, ast.ImportFrom))]


def imports(name, file, known):
    """Return the modules of the package that a module imports."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in statements(file.read_text("utf-8")):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        else:
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            base = base.removeprefix(f"{AROUND}.")
            wanted = [f"{base}.{alias.name}" for alias in node.names]
            wanted = [each if each in known else base for each in wanted]
        found.update(each.removeprefix(f"{AROUND}.") for each in wanted)
    return found & known.keys() - {name}


def graph(home):
    """Return for each module of a package those of it that it imports."""
    known = modules(home)
    return {name: imports(name, file, known) for name, file in known.items()}


def layer(module):
    """Return how far down a module stands."""
    _, *rest = module.split(".")
    return LAYERS.index(rest[0] if rest else "__init__")


def upward(arrows):
    """Return the imports of what stands higher, as text."""
    return [
        f"{name} -> {each}"
        for name, wanted in sorted(arrows.items())
        for each in sorted(wanted)
        if layer(each) < layer(name)
    ]


def circles(arrows):
    """Return the sets of modules that import each other round and round."""
    reached = {name: set(wanted) for name, wanted in arrows.items()}
    changed = True
    while changed:
        changed = False
        for name, wanted in reached.items():
            more = wanted.union(*(reached[each] for each in wanted))
            changed |= more != wanted
            reached[name] = more
    together = {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in reached
        if name in reached[name]
    }
    return sorted(map(sorted, together))


def test_every_package_has_its_place():
    standing = {module.split(".")[1] for module in modules(HOME) if "." in module}
    assert standing | {"__init__"} == set(LAYERS)


def test_imports_go_downwards():
    assert upward(graph(HOME)) == []


def test_no_modules_import_each_other():
    assert circles(graph(HOME)) == []


@pytest.fixture
def copied(tmp_path):
    """Return a function that adds a line to a module of a copy, and gives the copy's graph."""
    home = shutil.copytree(HOME, tmp_path / HOME.name, ignore=shutil.ignore_patterns("*.so"))

    def add(module, line):
        file = home / module
        file.write_text(file.read_text("utf-8") + line, "utf-8")
        return graph(home)

    return add


UPWARD = {
    "at the top": "\nfrom ..cuda.machine import Machine\n",
    "for types": "\nif TYPE_CHECKING:\n    from ..cuda.machine import Machine\n",
    "in a function": "\ndef f():\n    from ..cuda import machine\n",
    "by its whole name": "\nfrom cunorm.simgpu.cuda.machine import Machine\n",
    "as a plain import": "\nimport cunorm.simgpu.cuda.machine\n",
}


@pytest.mark.parametrize("how", UPWARD)
def test_an_upward_import_is_noticed(how, copied):
    arrows = copied("memory/space.py", UPWARD[how])
    assert upward(arrows) == ["simgpu.memory.space -> simgpu.cuda.machine"]


def test_an_import_of_the_package_itself_is_noticed(copied):
    arrows = copied("memory/space.py", "\nfrom .. import install\n")
    assert upward(arrows) == ["simgpu.memory.space -> simgpu"]


def test_a_circle_is_noticed(copied):
    arrows = copied("sync/clusters.py", "\ndef f():\n    from .mbarriers import Mbarrier\n")
    assert circles(arrows) == [["simgpu.sync.clusters", "simgpu.sync.mbarriers"]]
