"""Who may import whom. Imports inside functions and for type checking count as well.

cli -> (train, agent, observe, sim, lab) -> (core, planning)
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "chaos"

MAY_IMPORT: dict[str, set[str]] = {
    "core": {"core", "planning"},
    "planning": {"planning", "core.types", "core.errors"},
    "agent": {"agent", "observe", "core", "planning"},
    "observe": {"observe", "core", "planning"},
    "train": {"train", "core", "planning"},
    "sim": {"sim", "observe", "core", "planning"},
    "lab": {"lab", "agent.party", "observe", "core", "planning"},
    "cli": {"", "cli", "train", "agent", "observe", "sim", "lab", "core", "planning"},
    "examples": {""},
    "": {"train", "core"},
}
"""Parts of `chaos` per package; "" is the package `chaos` itself, the public names."""

EXCEPTIONS = {("train/launch.py", "agent")}
"""Inside functions only: a session outside `chaos run` starts an agent of its own."""

LIBRARIES: dict[str, set[str]] = {
    "core": {"msgspec", "blake3", "xxhash"},
    "planning": {"msgspec", "numpy"},
}
"""What the pure packages may use beyond the standard library."""

ORACLES = ("planning/shards_oracle.py", "planning/flow_oracle.py")
"""Compare plans with scipy's solver, which comes with the development tools: for tests only, and lazily."""

IMPURE = {
    *("time", "datetime", "random", "secrets", "uuid"),
    *("os", "io", "pathlib", "tempfile", "shutil", "mmap", "fcntl", "glob", "sqlite3", "logging", "ctypes"),
    *("socket", "socketserver", "ssl", "select", "selectors", "asyncio", "http", "urllib"),
    *("threading", "multiprocessing", "subprocess", "concurrent", "signal", "queue", "importlib"),
}
"""Modules of the standard library with a clock, chance, or an outside world in them."""

IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__"}


@dataclass(frozen=True)
class Import:
    """One imported module, by its absolute name."""

    file: str
    line: int
    module: str
    lazy: bool
    """Inside a function."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(tree: ast.AST, file: str) -> Iterator[Import]:
    """All imports of a module, wherever they stand."""
    lazy = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        for module in names_in(node, file):
            yield Import(file, node.lineno, module, id(node) in lazy)  # type: ignore[attr-defined]


def names_in(node: ast.AST, file: str) -> list[str]:
    """Absolute names of the modules that this one statement or call imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        package = ["chaos", *Path(file).parent.parts]
        base = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        # `from chaos import core` names a package, `from chaos.core import types` a module.
        return [f"{module}.{a.name}" if is_module(f"{module}.{a.name}") else module for a in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            return [node.args[0].value]
    return []


def is_module(name: str) -> bool:
    parts = name.split(".")
    path = SOURCE.joinpath(*parts[1:])
    return parts[0] == "chaos" and (path.is_dir() or path.with_suffix(".py").is_file())


def package_of(file: str) -> str:
    """The first folder below `chaos`. `chaos/__main__.py` is a command line."""
    parts = Path(file).parts
    if len(parts) > 1:
        return parts[0]
    return "cli" if file == "__main__.py" else ""


def layer_fault(found: Import) -> bool:
    """True if this import goes against the table."""
    if not (found.module == "chaos" or found.module.startswith("chaos.")):
        return False
    target = found.module.removeprefix("chaos").removeprefix(".")
    if found.lazy and any(found.file == file and within(target, part) for file, part in EXCEPTIONS):
        return False
    return not any(within(target, part) if part else target == "" for part in MAY_IMPORT[package_of(found.file)])


def within(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


def library_fault(found: Import) -> bool:
    """True if a pure package reaches for what is impure or not its own."""
    top = found.module.split(".")[0]
    allowed = LIBRARIES.get(package_of(found.file))
    if allowed is None or top == "chaos" or top in allowed:
        return False
    if found.file in ORACLES and top == "scipy" and found.lazy:
        return False
    return top in IMPURE or top not in sys.stdlib_module_names


def sources() -> dict[str, ast.AST]:
    """Every module below `chaos`, by its path there."""
    return {
        str(path.relative_to(SOURCE)): ast.parse(path.read_text(), str(path)) for path in sorted(SOURCE.rglob("*.py"))
    }


@pytest.fixture(scope="module")
def modules() -> dict[str, ast.AST]:
    return sources()


@pytest.fixture(scope="module")
def imports(modules: dict[str, ast.AST]) -> list[Import]:
    return [found for file, tree in modules.items() for found in imports_of(tree, file)]


def listed(faults: list[Import]) -> list[str]:
    return [str(fault) for fault in faults]


def test_every_package_has_its_place(modules: dict[str, ast.AST]) -> None:
    assert {package_of(file) for file in modules} <= set(MAY_IMPORT)
    assert {file for file in modules if "/" not in file} <= {"__init__.py", "__main__.py"}


def test_imports_go_one_way(imports: list[Import]) -> None:
    assert listed([found for found in imports if layer_fault(found)]) == []


def test_pure_packages_reach_for_nothing_outside(imports: list[Import]) -> None:
    assert listed([found for found in imports if library_fault(found)]) == []


def test_pure_packages_call_nothing_outside(modules: dict[str, ast.AST]) -> None:
    calls = [
        f"{file}:{node.lineno} calls {node.func.id}"
        for file, tree in modules.items()
        if package_of(file) in LIBRARIES
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS
    ]
    assert calls == []


def test_only_tests_use_the_oracles(imports: list[Import]) -> None:
    assert listed([found for found in imports if found.module.endswith("_oracle")]) == []


def test_no_torch_outside_the_worker(imports: list[Import]) -> None:
    without = ("core", "planning", "agent", "observe", "")
    torch = [found for found in imports if package_of(found.file) in without and ("torch" in found.module.split("."))]
    assert listed(torch) == []


def test_the_agent_s_process_never_has_torch() -> None:
    """Also not through a library. The command line counts: `chaos run` turns into the agent."""
    names = [
        "chaos." + str(path.relative_to(SOURCE).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for package in ("core", "agent", "cli")
        for path in sorted((SOURCE / package).rglob("*.py"))
    ]
    lines = [f"import {name}" for name in names] + ["import sys", "sys.exit('torch' in sys.modules)"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr or "torch was imported"


# --- the checks themselves ----------------------------------------------------------------------------


def faults_in(source: str, file: str) -> list[str]:
    found = list(imports_of(ast.parse(source), file))
    return [one.module for one in found if layer_fault(one) or library_fault(one)]


@pytest.mark.parametrize(
    ("file", "source", "faults"),
    [
        ("core/x.py", "import chaos.agent.party", ["chaos.agent.party"]),
        ("core/x.py", "from chaos import agent", ["chaos.agent"]),
        ("core/x.py", "import chaos", ["chaos"]),
        ("core/x.py", "from ..agent import party", ["chaos.agent.party"]),
        ("core/x.py", "from . import types\nfrom .types import View\nfrom ..planning import sync", []),
        ("core/x.py", "import time, heapq", ["time"]),
        ("core/x.py", "from os import path", ["os"]),
        ("core/x.py", "def f():\n    import random", ["random"]),
        ("core/x.py", "import numpy", ["numpy"]),
        ("core/x.py", "import msgspec, blake3, xxhash, hashlib", []),
        ("core/x.py", "if TYPE_CHECKING:\n    import torch", ["torch"]),
        (
            "core/x.py",
            "from importlib import import_module\nimport_module('chaos.cli')",
            ["importlib", "chaos.cli"],
        ),
        ("planning/x.py", "import numpy, msgspec, math", []),
        (
            "planning/x.py",
            "from chaos.core import types\nfrom chaos.core.node import Node",
            ["chaos.core.node"],
        ),
        ("planning/x.py", "def f():\n    import scipy", ["scipy"]),
        ("planning/shards_oracle.py", "def f():\n    import scipy.optimize", []),
        ("planning/shards_oracle.py", "import scipy.optimize", ["scipy.optimize"]),
        ("agent/x.py", "import asyncio, numpy, chaos.planning.sync, chaos.core.types", []),
        ("agent/x.py", "async def f():\n    from chaos.train import session", ["chaos.train.session"]),
        ("agent/x.py", "from chaos import Session", ["chaos"]),
        ("train/x.py", "def f():\n    import chaos.agent", ["chaos.agent"]),
        ("train/launch.py", "import chaos.agent", ["chaos.agent"]),
        ("train/launch.py", "def f():\n    from chaos.agent import party", []),
        ("train/launch.py", "def f():\n    import chaos.cli", ["chaos.cli"]),
        ("cli/x.py", "import chaos, chaos.train, chaos.agent, chaos.observe, torch", []),
        ("examples/x.py", "import chaos, torch", []),
        ("examples/x.py", "import chaos.train", ["chaos.train"]),
        ("__init__.py", "def f():\n    from chaos.train import Session", []),
        ("__init__.py", "import chaos.agent", ["chaos.agent"]),
    ],
)
def test_the_check_sees(file: str, source: str, faults: list[str]) -> None:
    assert faults_in(source, file) == faults
