"""Benchmarks and recipes, which belong to no package, as modules."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
RECIPES = ROOT / "recipes"


def load(path: Path, patch: pytest.MonkeyPatch) -> ModuleType:
    """The script at `path`, which may import those beside it, until `patch` is undone."""
    patch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, path.stem, module)  # where dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def run(script: ModuleType, patch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run a loaded script that reads its arguments from `sys.argv`."""
    patch.setattr(sys, "argv", [script.__file__, *map(str, arguments)])
    threads = torch.get_num_threads()
    try:
        script.main()
    finally:
        torch.set_num_threads(threads)


def refusal(main: Callable, *arguments: object) -> str:
    """The line by which the `main` of a recipe ends, of two: the other gives advice."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    error, advice = end.value.code.split("\n")
    assert error.startswith("error: ") and ("recipes/" in advice or "docs/" in advice)
    return error
