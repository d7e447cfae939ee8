"""Imports point one way, and the kernel never loads torch."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("native", "syscalls", "llmos", "drivers", "shell")

# What any part of the kernel may import: the contract with clients, the contract with drivers, plain values.
SHARED = {"syscalls", "llmos.cost", "llmos.device", "llmos.errors", "llmos.params"}
# Each may import those before it, never those after it.
SPINE = ("llmos.ipc", "llmos.mm", "llmos.proc", "llmos.sched", "llmos.place", "llmos.kernel")
# The simulated driver lives in the kernel's process, and the built-in model is where a package can find it.
WIRED_DRIVERS = {"drivers.sim", "drivers.sim_model", "drivers.builtin"}

ARROWS: dict[str, set[str]] = {
    "native": set(),
    "syscalls": set(),
    "llmos.errors": set(),
    "llmos.params": set(),
    "llmos.log": {"syscalls"},
    "llmos.notify": set(),
    "llmos.cost": set(),
    "llmos.device": {"llmos.cost", "syscalls"},
    "llmos.config": {"llmos.errors"},
    "llmos.tenants_file": {"llmos.config", "llmos.params", "syscalls"},
    "llmos.models": {"llmos.errors"},
    "llmos.doctor": {"llmos.config", "llmos.params"},
    "llmos.size": {"llmos.config", "llmos.device", "llmos.errors", "llmos.models", "drivers.builtin"},
    **{package: SHARED | set(SPINE[:place]) for place, package in enumerate(SPINE)},
    "llmos.agreements": SHARED | set(SPINE) | {"llmos.config", "llmos.tenants_file"},
    "llmos.loads": SHARED | {"llmos.config", "llmos.models", "native"},
    "llmos.openers": SHARED | set(SPINE) | {"llmos.config", "llmos.loads", "llmos.models"} | WIRED_DRIVERS,
    "llmos.gateway_options": {"llmos.config"},
    "llmos.model_loader": SHARED
    | set(SPINE)
    | {"llmos.config", "llmos.loads", "llmos.models", "drivers.builtin", "drivers.encoder"},
    "llmos.devices": SHARED | set(SPINE) | {"llmos.config", "llmos.loads", "llmos.openers"},
    "llmos.boot": SHARED
    | set(SPINE)
    | {"llmos.agreements", "llmos.config", "llmos.devices", "llmos.gateway_options", "llmos.loads"}
    | {"llmos.model_loader", "llmos.models", "llmos.notify", "drivers.builtin"},
    "llmos.bench": SHARED
    | set(SPINE)
    | {"llmos.boot", "llmos.config", "llmos.log", "llmos.openers", "drivers.sim"},
    "llmos.cli": SHARED
    | {
        "llmos.boot",
        "llmos.config",
        "llmos.doctor",
        "llmos.log",
        "llmos.notify",
        "llmos.bench",
        "llmos.size",
        "llmos.tenants_file",
    },
    # Between themselves drivers are free; of the kernel they know the interface and its framing.
    "drivers": {"llmos.cost", "llmos.device", "llmos.ipc", "native"},
    # User space: the contract, and nothing of each other.
    "shell.gateway": {"syscalls"},
    "shell.llmsh": {"syscalls"},
}

# The functional core: plain synchronous code that never waits.
SYNCHRONOUS = (
    "llmos/mm", "llmos/proc", "llmos/place", "llmos/sched/policy.py", "llmos/sched/batch.py",
    "llmos/sched/accounts.py", "llmos/sched/caps.py", "llmos/sched/fair.py", "llmos/sched/rerank.py",
    "llmos/sched/runqueue.py", "llmos/sched/switch.py", "llmos/config.py",
)  # fmt: skip


def python_files(*places: str) -> list[Path]:
    """All modules of some folders or files."""
    paths = [ROOT / place for place in places]
    return sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))


def imported_modules(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str | None:
    """The row of ARROWS that a module belongs to; None: it is not ours."""
    names = module.split(".")
    if names[0] not in PACKAGES:
        return None
    return names[0] if names[0] in ("native", "syscalls") else ".".join(names[:2])


def find_arrows() -> dict[str, dict[str, set[str]]]:
    """What imports what: from each part to each other part, the files that do it."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in python_files(*PACKAGES):
        here = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        source = part_of(here.removesuffix(".__init__"))
        assert source is not None
        found[source]  # a part that imports nothing is there, too
        for module in imported_modules(path):
            target = part_of(module)
            if target is not None and target != source:
                found[source][target].add(str(path.relative_to(ROOT)))
    return found


def test_imports_follow_the_arrows() -> None:
    """No module imports what the table does not let its part import."""
    wrong = []
    for source, targets in find_arrows().items():
        row = "drivers" if source.startswith("drivers") else source
        for target, files in targets.items():
            is_within = row == "drivers" and target.startswith("drivers")
            if not is_within and target not in ARROWS.get(row, set()):
                wrong.append(f"{source} -> {target}: {', '.join(sorted(files))}")
    assert not wrong, "\n".join(wrong)


def test_the_table_speaks_of_what_is_there() -> None:
    """Every part of the kernel has its row, and every row and every target of an arrow is there."""
    parts = set(find_arrows()) | {"drivers"}
    assert {part for part in parts if part.startswith(("llmos.", "shell."))} <= set(ARROWS) <= parts
    assert set().union(*ARROWS.values()) <= parts


def test_kernel_packages_form_no_circle() -> None:
    """The parts of llmos, as they import each other today, have an order."""
    graph = {
        source: {target for target in targets if target.startswith("llmos.")}
        for source, targets in find_arrows().items()
        if source.startswith("llmos.")
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("llmos.mm") < order.index("llmos.sched") < order.index("llmos.kernel")


def test_operations_know_no_model() -> None:
    """Models are made of operations, not the other way round."""
    for path in python_files("drivers/ops", "drivers/triton_ops"):
        assert not [name for name in imported_modules(path) if name.startswith("drivers.model")], path


def test_only_drivers_name_torch() -> None:
    """No file of the kernel, the contract or user space imports torch, not even inside a function."""
    for path in python_files("llmos", "syscalls", "shell", "native"):
        for module in imported_modules(path):
            assert module.split(".")[0] not in ("torch", "triton", "transformers"), (path, module)


@pytest.mark.parametrize(
    "modules",
    ["llmos.boot, llmos.cli, llmos.doctor", "shell.gateway.server, shell.llmsh.main", "syscalls.sync"],
)
def test_torch_is_not_loaded(modules: str) -> None:
    """Importing the kernel, a door or the client loads no torch by whatever detour."""
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_core_is_synchronous() -> None:
    """Memory, processes and policies are plain code: none of it defines a coroutine."""
    for path in python_files(*SYNCHRONOUS):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), (path, node.lineno)
        assert "trio" not in {module.split(".")[0] for module in imported_modules(path)}, path
