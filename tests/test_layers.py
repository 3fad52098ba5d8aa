"""Imports run one way: down the rooms that the package's docstring names, and never in a circle.

Every import counts, also those inside functions and for type checkers only.
"""

import ast
import graphlib
import re
from pathlib import Path

import apnet2_tts_plugin

ROOT = Path(apnet2_tts_plugin.__file__).parent


def module_name(path: Path) -> str:
    """The name below the package: "weights.find", "weights" for its `__init__`, "" for the package itself."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}
ROOMS = re.findall(r"`(\w+)`", apnet2_tts_plugin.__doc__.partition("The rooms")[2])
ROOMS.insert(2, "")  # what `cli` takes the version from


def imported(tree: ast.Module) -> set[str]:
    """The modules of this package that a module imports."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    own = [name.partition(".")[2] for name in names if name.partition(".")[0] == ROOT.name]
    return {name if name in TREES else name.rpartition(".")[0] for name in own}


def room(module: str) -> str:
    return module.partition(".")[0]


ARROWS = {module: imported(tree) for module, tree in TREES.items()}


def test_every_module_has_its_room():
    assert {room(module) for module in TREES} == set(ROOMS)
    for module in TREES:
        folder, _, name = module.rpartition(".")
        assert not folder or f"`{name}`" in ast.get_docstring(TREES[folder]), f"{folder} does not say what {name} is"


def test_imports_go_down():
    arrows = [(module, other) for module, others in ARROWS.items() for other in others]
    assert len(arrows) > 100 and set().union(*ARROWS.values()) <= set(TREES)
    up = [arrow for arrow in arrows if ROOMS.index(room(arrow[0])) > ROOMS.index(room(arrow[1]))]
    assert not up


def test_imports_make_no_circle():
    graphlib.TopologicalSorter(ARROWS).prepare()
