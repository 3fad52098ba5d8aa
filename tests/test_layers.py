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


def test_the_picture_in_the_documents_is_so():
    """An import goes to a floor below, or to the right on the same floor; what has no floor is not shown."""
    text = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = text.partition("```text\n")[2].partition("```")[0].splitlines()
    floors = [re.findall(r"\w+", line[:50].replace("cli_*", "")) for line in lines if "---" not in line]
    places = {name: (floor, i) for floor, names in enumerate(floors) for i, name in enumerate(names)}
    assert set(places) == {name for name in ROOMS if name not in ("", "__main__", "_boot") and "cli_" not in name}
    shown = [(room(a), room(b)) for a, others in ARROWS.items() for b in others if {room(a), room(b)} <= set(places)]
    assert not [arrow for arrow in shown if places[arrow[0]] > places[arrow[1]]]


def test_imports_make_no_circle():
    graphlib.TopologicalSorter(ARROWS).prepare()
