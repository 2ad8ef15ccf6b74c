"""The shape of the tree: who imports whom, what stays out of the guest, what the registry names."""

import ast
import importlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinstorm.spawn import Zygote
from workloads import MEMORY, WORKLOADS

ROOT = Path(__file__).parents[2]
# From the top down: a layer imports itself and what comes after it.
PACKAGES = ("pinstorm", "workloads", "telemetry")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# What telemetry and workloads may use besides the standard library.
OUTSIDE = {"telemetry": {"psutil"}, "workloads": {"numba", "numpy", "psutil", "pyverbs"}}

# Cold, each of these takes a guest seconds to import.
SLOW = ("pydantic", "typer", "rich", "polars", "numba")
IN_GUEST = (
    "pinstorm.runner",
    "pinstorm.needs",
    "pinstorm.oracle",
    "pinstorm.rules",
    "pinstorm.verdict",
    "pinstorm.pin_judgement",
    "pinstorm.journal",
    "pinstorm.errors",
    "pinstorm.units",
    "pinstorm.observe",
    "pinstorm.talk",
    "pinstorm.windows",
    "pinstorm.evidence",
    "pinstorm.explain",
    "pinstorm.circumstances",
    "pinstorm.remedy",
    "pinstorm.attribution",
    "pinstorm.census",
    "pinstorm.spawn",
    "pinstorm.sampling",
    "pinstorm.sampler",
    "pinstorm.samples",
    "pinstorm.intervals",
    "pinstorm.containment",
    "pinstorm.lab.guest",
    "pinstorm.lab.setup",
)

# Files of workloads/ that are no workload and no memory.
MACHINERY = {
    "channel",
    "child",
    "crew",
    "disturbance",
    "libc",
    "member",
    "node",
    "owner",
    "prepared",
    "ring",
    "scratch",
    "spec",
    "user",
    "verbs",
    "zygote",
}
MEMORY_MACHINERY = {"evacuation", "proof"}

# Names that say nothing of what is in them.
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}

# Paths that two modules of telemetry may name, and why.
SHARED_PATHS = {"/sys/devices/system/node"}  # the nodes; each of their files has its own module


def name_of(path: Path) -> str:
    words = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or in a function."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join([*base, *([node.module] if node.module else [])])


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    layer = PACKAGES.index(path.relative_to(ROOT).parts[0])
    above = {*PACKAGES[:layer], *(("configs",) if layer else ())}
    assert not [name for name in imports_of(path) if name.split(".")[0] in above]


@pytest.mark.parametrize("package", OUTSIDE)
def test_lower_layers_need_little(package: str) -> None:
    known = sys.stdlib_module_names | set(PACKAGES) | OUTSIDE[package]
    foreign = {
        name_of(path): name
        for path in (ROOT / package).rglob("*.py")
        for name in imports_of(path)
        if name.split(".")[0] not in known
    }
    assert foreign == {}


def test_pyverbs_is_imported_by_rdma_modules_alone() -> None:
    users = {
        name_of(path)
        for path in MODULES
        if any(name.split(".")[0] == "pyverbs" for name in imports_of(path))
    }
    assert users <= {
        "workloads.verbs",
        "workloads.rdma_register",
        "workloads.rdma_register_odp",
        "workloads.load.register_rdma",
        "workloads.load.register_odp",
    }


def test_numba_is_imported_by_the_compiled_loops_alone() -> None:
    users = {name_of(path) for path in MODULES if "numba" in set(imports_of(path))}
    assert users == {"workloads.load.compiled.words"}


@pytest.mark.parametrize("module", IN_GUEST)
def test_guest_modules_import_nothing_slow(module: str) -> None:
    """Not even in a function: the whole tree of what each imports is looked at."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        path = ROOT / (name.replace(".", "/") + ".py")
        path = path if path.is_file() else ROOT / name.replace(".", "/") / "__init__.py"
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        for imported in imports_of(path):
            assert imported.split(".")[0] not in SLOW, f"{name} imports {imported}"
            todo.append(imported)


def test_guest_process_loads_nothing_slow() -> None:
    """The same, asked of Python: what the standard library and psutil bring is included."""
    program = f"""
import importlib, sys
for name in {IN_GUEST!r}:
    importlib.import_module(name)
print(*sorted(set(sys.modules) & {set(SLOW)!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_zygote_is_small_and_has_one_thread() -> None:
    program = f"""
import importlib, os, sys
from workloads import zygote
zygote._import_everything()
print(*sorted(set(sys.modules) & {{*{SLOW!r}, "numpy"}}))
print(len(os.listdir("/proc/self/task")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["", "1"]


def test_running_zygote_has_one_thread_and_no_heavy_library() -> None:
    zygote = Zygote()
    try:
        zygote.warm_up()
        assert len(list(Path(f"/proc/{zygote.pid}/task").iterdir())) == 1
        maps = Path(f"/proc/{zygote.pid}/maps").read_text()
        assert not [
            name for name in ("polars", "pydantic_core", "numpy", "llvmlite") if name in maps
        ]
    finally:
        zygote.close()


def test_registry_names_every_module() -> None:
    found = {path.stem for path in (ROOT / "workloads").glob("*.py")} - {"__init__"} - MACHINERY
    assert {f"workloads.{name}" for name in found} == {spec.module for spec in WORKLOADS}
    found = {path.stem for path in (ROOT / "workloads/memory").glob("*.py")} - {"__init__"}
    found -= MEMORY_MACHINERY
    assert {f"workloads.memory.{name}" for name in found} == {spec.module for spec in MEMORY}


@pytest.mark.parametrize("spec", [*WORKLOADS, *MEMORY], ids=lambda spec: spec.name)
def test_every_spec_has_its_module(spec: object) -> None:
    module_name: str = spec.module  # type: ignore[attr-defined]
    tree = ast.parse((ROOT / (module_name.replace(".", "/") + ".py")).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "prepare" in functions


def test_registry_imports_no_workload() -> None:
    program = "import sys, workloads; print(*sorted(n for n in sys.modules if 'workloads.' in n))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        "workloads.antagonists",
        "workloads.load",
        "workloads.load.spec",
        "workloads.spec",
    ]


def test_names_of_specs_are_unique() -> None:
    for specs in (WORKLOADS, MEMORY):
        names = [spec.name for spec in specs]
        assert len(names) == len(set(names))


def test_module_names_say_what_is_in_them() -> None:
    assert not [name_of(path) for path in MODULES if EMPTY_NAMES & set(path.stem.split("_"))]


def test_ctypes_stands_in_one_module() -> None:
    users = {name_of(path) for path in MODULES if "ctypes" in set(imports_of(path))}
    assert users <= {"workloads.libc"}


def test_each_kernel_path_stands_in_one_module() -> None:
    """Literal paths of /proc and /sys in telemetry, docstrings left out."""
    users = defaultdict(set)
    for path in (ROOT / "telemetry").glob("*.py"):
        for literal in kernel_paths(path):
            users[literal].add(path.name)
    shared = {path: sorted(names) for path, names in users.items() if len(names) > 1}
    assert {path: names for path, names in shared.items() if path not in SHARED_PATHS} == {}


def kernel_paths(path: Path) -> Iterator[str]:
    """``/proc/*/maps`` for what an f-string fills in."""
    tree = ast.parse(path.read_text())
    parts = {
        id(v) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for v in node.values
    }
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in parts or id(node) in statements:
            continue
        text = ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(v.value) if isinstance(v, ast.Constant) else "*" for v in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        if text.startswith(("/proc/", "/sys/")):
            yield text.rstrip("/")


def test_specs_import() -> None:
    """Every memory and every workload without RDMA can be imported on any machine."""
    for spec in (*MEMORY, *WORKLOADS):
        if not spec.name.startswith("rdma-"):
            assert callable(importlib.import_module(spec.module).prepare)
