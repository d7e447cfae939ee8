"""The measurements behind `llmos bench gpu`: `python -m drivers.bench.gpu`, JSON lines as in rows.py.

Checks come first. Each section has a share of the time and leaves out what does not fit; one that fails ends
the process, since a GPU may be beyond use then, and whoever started it starts another for the rest. With
--rehearse every part runs once, tiny, on the processor: triton's interpreter, and the library that
LLMOS_LIBCUDA names. Its numbers measure nothing; they show that the program works.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from drivers.bench.rows import Dropped, Measured, Plan, Started

if TYPE_CHECKING:
    from drivers.bench.gpu_setup import Setup
    from drivers.model.transformer import Transformer

SECONDS = {  # by section, after which no case of it begins; 8 minutes with what it takes to build and start
    "checks": 75, "peaks": 10, "kernels": 45, "step": 70, "formats": 22, "prefill": 30, "paging": 10,
    "swap": 15, "serving": 50,
}  # fmt: skip
GRACE_SECONDS = 20  # for the case that had begun; then the process is ended
FAILED = 3  # exit code
INTERPRETED = ("checks", "peaks", "kernels", "step", "formats", "prefill", "serving")
INTERPRETED_TIMES = 6  # as much time in a rehearsal

__all__ = ["SECONDS", "main"]


def open_setup(is_rehearsal: bool) -> Setup:
    """The device; what imports torch and triton is imported here, once the environment is set.

    Raises:
        CudaRefused: there is no GPU, or no driver.
        RuntimeError: torch cannot compute on it.
    """
    from drivers.bench import gpu_setup
    from drivers.cuda import explain_torch
    from native.cuda.device import CudaDevice

    memory = CudaDevice(0)
    if is_rehearsal != (not memory.num_multiprocessors):
        found = "a GPU" if memory.num_multiprocessors else "a stand-in without a processor"
        raise RuntimeError(f"{memory.name} is {found}; {'leave out' if is_rehearsal else 'give'} --rehearse")
    if (reason := explain_torch(memory)) is not None:
        raise RuntimeError(reason)
    import torch

    sizes = gpu_setup.rehearsal_sizes() if is_rehearsal else gpu_setup.full_sizes()
    return gpu_setup.Setup(torch.device("cpu" if is_rehearsal else "cuda:0"), memory, sizes, 0.0)


def open_sections(setup: Setup) -> dict[str, Callable[[], Iterator[Measured]]]:
    """What is measured, in order."""
    from drivers.bench import gpu_checks, gpu_kernels, gpu_mapping, gpu_memory, gpu_model, gpu_serve

    def with_model(
        *measures: Callable[[Setup, Transformer], Iterator[Measured]],
    ) -> Iterator[Measured]:
        sizes = setup.sizes
        longest = max(*sizes.contexts, *sizes.prompts)
        model = gpu_model.random_transformer(sizes.model, sizes.dtype, setup.device, longest)
        for measure in measures:
            yield from measure(setup, model)

    return {
        "checks": lambda: gpu_checks.check_device(setup),
        "peaks": lambda: gpu_kernels.measure_peaks(setup),
        "kernels": lambda: gpu_kernels.measure_kernels(setup),
        "step": lambda: with_model(gpu_model.measure_decode, gpu_mapping.measure_mapping),
        "formats": lambda: gpu_model.measure_formats(setup),
        "prefill": lambda: with_model(gpu_model.measure_prefill),
        "paging": lambda: gpu_memory.measure_paging(setup),
        "swap": lambda: gpu_memory.measure_swap(setup),
        "serving": lambda: gpu_serve.measure_serving(setup),
    }


def run(sections: Sequence[str], setup: Setup, final: float) -> Iterator[Plan | Started | Measured | Dropped]:
    """Measure sections in order, up to one that fails.

    Args:
        sections: of SECONDS.
        setup: the device.
        final: by time.monotonic; no case begins later.
    """
    yield Plan(len(sections), setup.memory.name)
    measures = open_sections(setup)
    wanted = sum(SECONDS[name] for name in sections)
    share = max(0.0, min(1.0, (final - time.monotonic()) / wanted))  # what is left is shared by all
    for name in sections:
        is_slow = not setup.is_gpu and name in INTERPRETED
        seconds = share * SECONDS[name] * (INTERPRETED_TIMES if is_slow else 1)
        yield Started(name, seconds + GRACE_SECONDS)
        setup.deadline = min(final, time.monotonic() + seconds)
        try:
            yield from measures[name]()
        except Exception as error:
            if is_out_of_memory(error):  # the device is as good as before
                yield Dropped(f"{name}: the rest of it", f"too little memory: {error}")
                continue
            traceback.print_exc()
            yield Dropped(name, f"{type(error).__name__}: {error}", is_failure=True)
            return
        finally:
            left_out, setup.left_out = setup.left_out, []
            yield from (Dropped(case, reason) for case, reason in left_out)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch, or the driver library, says that there is no memory."""
    import torch

    has_none = isinstance(error, OSError) and "CUDA_ERROR_OUT_OF_MEMORY" in str(error)
    return has_none or isinstance(error, torch.OutOfMemoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object a line, as soon as it is known; 2: no such device, 3: a section failed."""
    parser = argparse.ArgumentParser(prog="drivers.bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=list(SECONDS), required=True)
    parser.add_argument(
        "--served", nargs=4, type=float, metavar=("PROMPTS", "IN", "OUT", "RATE"),
        help="what llmos was measured to serve: prompts at once, tokens of each, tokens a second",
    )  # fmt: skip
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the processor: no measurements")
    parser.add_argument("--seconds", type=float, default=sum(SECONDS.values()), help="for all of it")
    given = parser.parse_args(arguments)
    if ("serving" in given.sections) != (given.served is not None):
        parser.error("the section serving comes with --served, as llmos bench gpu gives it")
    os.environ["TRITON_INTERPRET"] = "1" if given.rehearse else "0"  # before kernels are decorated
    final = time.monotonic() + given.seconds
    try:
        setup = open_setup(given.rehearse)
    except (OSError, RuntimeError) as error:
        print(f"no GPU to measure: {error}", file=sys.stderr)
        return 2
    if given.served is not None:
        from drivers.bench.gpu_setup import Served

        num_prompts, prompt_tokens, output_tokens, rate = given.served
        setup.served = Served(int(num_prompts), int(prompt_tokens), int(output_tokens), rate)
    has_failed = False
    try:
        for message in run(given.sections, setup, final):
            has_failed |= isinstance(message, Dropped) and message.is_failure
            print(msgspec.json.encode(message).decode(), flush=True)
    finally:
        setup.memory.close()
    return FAILED if has_failed else 0


if __name__ == "__main__":
    sys.exit(main())
