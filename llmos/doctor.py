"""`llmos doctor`: what devices, kernels and libraries are usable here, and why the others are not.

Whatever needs torch is asked in a child process: the kernel never imports it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import attrs

from llmos.config import num_cores
from llmos.params import VERSION

LIBRARIES = (
    "torch", "triton", "cffi", "trio", "msgspec", "tokenizers", "safetensors", "starlette", "h11",
    "prompt_toolkit", "rich", "jinja2", "huggingface_hub", "prometheus_client",
)  # fmt: skip
MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")


@attrs.frozen
class Finding:
    """One line of the report."""

    subject: str
    is_usable: bool
    detail: str


def _ask_child(code: str) -> tuple[bool, str]:
    """Run a line in a child, which may import torch, or try what it is; its output, or why it failed."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    if result.returncode == 0:
        return True, result.stdout.strip()
    lines = result.stderr.strip().splitlines()
    return False, lines[-1] if lines else f"exit code {result.returncode}"


def check_cuda() -> Finding:
    """Is there a CUDA device that torch can use? A stand-in for the driver library can serve, and is none."""
    is_there = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
    if not is_there and not os.environ.get("LLMOS_LIBCUDA"):
        return Finding("device cuda", False, "no NVIDIA device node in /dev")
    ok, detail = _ask_child(
        "import torch\n"
        "from drivers.cuda import CudaDriver\n"
        "found = [CudaDriver(i) for i in range(max(1, torch.cuda.device_count()))]\n"
        "assert all(each.memory_bytes and each.is_gpu for each in found), found[0].describe()\n"
        "print(', '.join(each.describe() for each in found))"
    )
    return Finding("device cuda", ok, detail.removeprefix("AssertionError: "))


def choose_device() -> str:
    """What `--device auto` means here: "cuda" where it works, else "cpu"."""
    return "cuda" if check_cuda().is_usable else "cpu"


def check_cpu() -> Finding:
    """The processor and the vector instructions that kernels may use."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    flags = next(
        (set(line.split(":", 1)[1].split()) for line in info.splitlines() if line.startswith("flags")), set()
    )
    vector = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in flags]
    name = names[0] if names else platform.processor() or platform.machine()
    return Finding("device cpu", True, f"{name}, {num_cores()} cores, {' '.join(vector) or 'no AVX2'}")


def check_native() -> Finding:
    """Is native/ compiled, and does it load?"""
    if importlib.util.find_spec("native._cpu") is None:
        return Finding("native kernels", False, "native/_cpu is not compiled; `make venv` builds it")
    try:
        module = importlib.import_module("native._cpu")
    except ImportError as error:
        return Finding("native kernels", False, str(error))
    variant = module.ffi.string(module.lib.llmos_variant_name(module.lib.llmos_best_variant())).decode()
    return Finding("native kernels", True, f"device cpu runs on native._cpu, {variant} variant")


def check_paging() -> Finding:
    """How many mappings the operating system allows: each run of frames takes one."""
    limit = int(MAX_MAP_COUNT.read_text()) if MAX_MAP_COUNT.exists() else 0
    return Finding(
        "demand paging", limit > 0, f"vm.max_map_count {limit}" if limit else "no /proc/sys/vm/max_map_count"
    )


def check_realtime() -> Finding:
    """Does the system allow `realtime`?"""
    ok, detail = _ask_child("from syscalls.realtime import go_before_others; go_before_others()")
    what = "kernel and gateway may run before others: `realtime`"
    return Finding("real time", ok, what if ok else f"`realtime` is not allowed: {detail}")


def check_memory() -> Finding:
    """Physical memory of the machine."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Finding("memory", True, f"{size / 2**30:.1f} GiB")


def check_library(name: str) -> Finding:
    """Is a library installed, and which version?"""
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed")


def examine() -> list[Finding]:
    """Check everything. Takes a second or two where torch must be asked."""
    python = Finding("python", sys.version_info >= (3, 11), f"{platform.python_version()}, llmos {VERSION}")
    checks = [python, check_memory(), check_cpu(), check_cuda(), check_native(), check_paging()]
    checks.append(check_realtime())
    return checks + [check_library(name) for name in LIBRARIES]


def main(*, as_json: bool) -> int:
    """Print the report; exit code 1 when not even the CPU can serve."""
    findings = examine()
    if as_json:
        print(json.dumps([attrs.asdict(finding) for finding in findings]))
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            print(f"{'ok ' if finding.is_usable else 'no '} {finding.subject:<{width}}  {finding.detail}")
    optional = {"device cuda", "triton", "real time"}
    return int(any(not finding.is_usable and finding.subject not in optional for finding in findings))
