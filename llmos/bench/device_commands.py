"""The commands of benchmarks of a device: `llmos bench cpu`, `gpu`, `transfer` and `map`."""

from __future__ import annotations

import argparse
from typing import Any

from llmos.bench.options import add_json, add_runs, add_threads, count


def add_cpu(names: Any) -> None:
    """The options of `llmos bench cpu`."""
    cpu = names.add_parser("cpu", help="the kernels of device cpu, against the machine's own peaks")
    add = cpu.add_argument
    add("--only", default=None, metavar="LIST", help="sections, like gemm,decode (default: all)")
    add("--threads", type=count, default=None, metavar="N", help="most threads (default: all cores)")
    add("--quick", action="store_true", help="one tiny case of each kind, to see that it works")
    add_json(cpu)
    add_runs(cpu)
    cpu.set_defaults(run=run_cpu_bench)


def run_cpu_bench(options: argparse.Namespace) -> int:
    """Measure the kernels of device cpu."""
    from llmos.bench import cpu

    return cpu.main(
        only=options.only, threads=options.threads, num_runs=options.runs, is_quick=options.quick,
        json_path=options.json,
    )  # fmt: skip


def add_gpu(names: Any) -> None:
    """The options of `llmos bench gpu`."""
    gpu = names.add_parser("gpu", help="checks, then kernels, steps, memory and serving on a GPU")
    add = gpu.add_argument
    add("--only", default=None, metavar="LIST", help="sections, like checks,step (default: all)")
    add("--rehearse", action="store_true", help="every part once, tiny, without a GPU: no measurements")
    add("--seconds", type=float, default=None, metavar="S", help="for all but a rehearsal (default: 470)")
    add_json(gpu)
    gpu.set_defaults(run=run_gpu_bench)


def run_gpu_bench(options: argparse.Namespace) -> int:
    """Measure a GPU."""
    from llmos.bench import gpu

    return gpu.main(
        only=options.only, is_rehearsal=options.rehearse, json_path=options.json, seconds=options.seconds
    )


def add_transfer(names: Any) -> None:
    """The options of `llmos bench transfer`."""
    transfer = names.add_parser("transfer", help="copies between tiers of memory, against one large copy")
    transfer.add_argument("--folder", default=None, metavar="DIR", help="of the files (default: temporary)")
    transfer.add_argument("--quick", action="store_true", help="a few bytes of each kind")
    add_json(transfer)
    add_runs(transfer)
    transfer.set_defaults(run=run_transfer_bench)


def run_transfer_bench(options: argparse.Namespace) -> int:
    """Measure copies between tiers."""
    from llmos.bench import transfer

    return transfer.main(
        folder=options.folder, num_runs=options.runs, is_quick=options.quick, json_path=options.json
    )


def add_map(names: Any) -> None:
    """The options of `llmos bench map`."""
    mapping = names.add_parser("map", help="do steps wait for memory to be mapped")
    add_threads(mapping)
    add = mapping.add_argument
    add("--shapes", default="base,160m", metavar="LIST", help="of models (default: %(default)s)")
    add("--quick", action="store_true", help="a tiny model, to see that it works")
    add_json(mapping)
    add_runs(mapping)
    mapping.set_defaults(run=run_map_bench)


def run_map_bench(options: argparse.Namespace) -> int:
    """Measure mapping ahead of need against mapping in time and beforehand."""
    from llmos.bench import map as mapping

    return mapping.main(
        shapes=mapping.choose_shapes(options.shapes),
        threads=options.threads,
        num_runs=options.runs,
        is_quick=options.quick,
        json_path=options.json,
    )
