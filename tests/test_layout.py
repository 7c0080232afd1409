"""The structure of the code: which way imports point, and that no two files import each other."""

from __future__ import annotations

import ast
import graphlib
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

LAYERS = {"flows": {"flows", "stages", "models", "storage"}, "stages": {"stages", "models", "storage"}}
LAYERS |= {"models": {"models"}, "storage": {"storage"}}
"""What each package may import."""

PREFECT = ("flows",)
LONGEST = 400
"""Lines of a file."""


def module_files() -> dict[str, Path]:
    """Dotted name → file for every installed module."""
    found = {}
    for package in LAYERS:
        for path in sorted((PROJECT / package).rglob("*.py")):
            parts = path.relative_to(PROJECT).with_suffix("").parts
            found["bootpig." + ".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports_of(path: Path) -> frozenset[str]:
    """The names a file imports: at its top, in a function, or for the type checker alone."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return frozenset(names)


def test_every_import_of_a_file_counts(tmp_path: Path) -> None:
    lines = ["import a", "if TYPE_CHECKING:", "    from b import c", "def f():", "    from d import e"]
    (tmp_path / "file.py").write_text("\n".join(lines))
    assert imports_of(tmp_path / "file.py") == {"a", "b", "b.c", "d", "d.e"}


def test_imports_point_one_way() -> None:
    wrong = []
    for module, path in module_files().items():
        layer = module.split(".")[1]
        for name in imports_of(path):
            first, *rest = name.split(".")
            if first in LAYERS:
                wrong.append(f"{module} imports {name}; write bootpig.{name}")
            elif (first == "bootpig" and rest and rest[0] in LAYERS and rest[0] not in LAYERS[layer]) or (
                first.startswith("prefect") and layer not in PREFECT
            ):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_no_two_files_import_each_other() -> None:
    files = module_files()
    graph = {module: {name for name in imports_of(path) if name in files} for module, path in files.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", sorted(module_files()))
def test_a_file_is_not_too_long(module: str) -> None:
    assert len(module_files()[module].read_text().splitlines()) <= LONGEST


def test_tests_and_benchmarks_import_the_package() -> None:
    for path in (path for name in ("tests", "benchmarks", "science") for path in (PROJECT / name).rglob("*.py")):
        assert not {name for name in imports_of(path) if name.split(".")[0] in LAYERS}, path
