"""What the sections of `llmos bench gpu` share: the device, sizes, time that is left, and how they time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from attrs import define, evolve, field, frozen

from drivers.bench.random_model import SHAPES
from drivers.bench.rows import Measured
from drivers.model.config import ModelConfig
from native.cuda.device import CudaDevice

__all__ = ["Served", "Setup", "Sizes", "full_sizes", "rehearsal_sizes"]

CALLS = 10  # in one timing
BENCH_8B = evolve(
    SHAPES["1b"], hidden_size=4096, intermediate_size=14336, num_layers=32, num_heads=32, num_kv_heads=8,
    head_dim=128, max_positions=1 << 17,
)  # fmt: skip


@frozen
class Served:
    """What llmos was measured to serve."""

    num_prompts: int
    prompt_tokens: int
    output_tokens: int
    rate: float  # tokens a second


@frozen
class Sizes:
    """How large everything is."""

    model: ModelConfig  # for steps, prompts and kernels; random weights
    served: ModelConfig  # for what is compared with transformers
    dtype: torch.dtype
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]  # tokens
    product_rows: tuple[int, ...]  # of a matrix product alone
    ablation_batches: tuple[int, ...]  # with and without graphs, two steps in flight, and fewer bits
    served_dtype: torch.dtype
    peak_bytes: int  # of the copy that bandwidth is measured by
    peak_side: int  # of the square matrices that the arithmetic peak is measured by
    num_calls: int  # of each call of the CUDA driver
    swap_frames: int
    runs: int

    @property
    def weight_bytes(self) -> int:
        """Of the model's products, all of which a step reads at least once."""
        config = self.model
        heads = config.num_heads + config.num_kv_heads  # of q and the output, of k and v
        per_layer = 2 * heads * config.head_dim + 3 * config.intermediate_size
        rows = config.num_layers * per_layer + config.vocab_size
        return int(rows * config.hidden_size * self.dtype.itemsize)


def full_sizes() -> Sizes:
    """An 8B Llama shape, as far as the device's memory holds it."""
    return Sizes(
        model=BENCH_8B, served=evolve(SHAPES["1b"], max_positions=4096), dtype=torch.bfloat16,
        batches=(1, 4, 16, 64, 256), contexts=(1 << 10, 1 << 12, 1 << 14, 1 << 15, 1 << 17),
        prompts=(512, 4096, 8192, 32768), product_rows=(1, 16, 64, 4096), ablation_batches=(1, 8, 64),
        served_dtype=torch.float16, peak_bytes=1 << 30, peak_side=8192, num_calls=1000, swap_frames=512,
        runs=5,
    )  # fmt: skip


def rehearsal_sizes() -> Sizes:
    """As small as can be: every part once, under the interpreter."""
    tiny = evolve(
        SHAPES["tiny"], vocab_size=64, hidden_size=32, intermediate_size=32, num_layers=1, num_kv_heads=1,
        head_dim=16, max_positions=64,
    )  # fmt: skip
    return Sizes(
        model=tiny, served=SHAPES["tiny"], dtype=torch.float32, batches=(1, 2), contexts=(16,), prompts=(8,),
        product_rows=(1,), ablation_batches=(1,), served_dtype=torch.float32, peak_bytes=1 << 16,
        peak_side=64, num_calls=3, swap_frames=4, runs=1,
    )  # fmt: skip


@define(eq=False)
class Setup:
    """One run.

    Attributes:
        device: where torch computes.
        memory: the same, as the CUDA driver has it.
        sizes: see Sizes.
        deadline: by time.monotonic; a case that would begin later is left out.
        left_out: cases that were, each with why.
        served: what was measured before; None: serving is not to be measured.
    """

    device: torch.device
    memory: CudaDevice
    sizes: Sizes
    deadline: float
    left_out: list[tuple[str, str]] = field(factory=list)
    served: Served | None = None

    @property
    def is_gpu(self) -> bool:
        """False in a rehearsal."""
        return self.device.type == "cuda"

    def has_time(self, case: str) -> bool:
        """Whether a case may begin; if not, it is noted."""
        if time.monotonic() < self.deadline:
            return True
        self.left_out.append((case, "no time was left"))
        return False

    def has_memory(self, case: str, num_bytes: int) -> bool:
        """Whether a case's memory is there, with a tenth to spare; if not, it is noted."""
        if self.is_gpu:
            torch.cuda.empty_cache()  # what torch keeps of cases before is free
        free_bytes = torch.cuda.mem_get_info(self.device)[0] if self.is_gpu else 1 << 30
        if num_bytes < 0.9 * free_bytes:
            return True
        self.left_out.append((case, f"takes {num_bytes / 2**30:.0f} GiB, {free_bytes / 2**30:.0f} are free"))
        return False

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Of work whose kernels are recorded as a graph and replayed: what it takes the device alone."""
        work()
        self.synchronize()
        if not self.is_gpu:
            began = time.perf_counter()
            work()
            return time.perf_counter() - began
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                work()
        graph.replay()
        times: list[float] = []
        for _ in range(self.sizes.runs):
            began_at, ended_at = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began_at.record()
            graph.replay()
            ended_at.record()
            ended_at.synchronize()
            times.append(began_at.elapsed_time(ended_at) / 1e3 / CALLS)
        return statistics.median(times)

    def bandwidth(self) -> float:
        """Bytes a second that a copy within the device reads and writes."""
        size = self.sizes.peak_bytes // 2
        source, target = (torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(2))
        return 2 * size / self.seconds(lambda: target.copy_(source))

    def arithmetic(self) -> float:
        """Operations a second of a large product of random numbers, in the model's format."""
        side = self.sizes.peak_side
        a, b = (torch.randn(side, side, dtype=self.sizes.dtype, device=self.device) for _ in range(2))
        out = torch.empty_like(a)
        return 2 * side**3 / self.seconds(lambda: torch.mm(a, b, out=out))

    def against_bandwidth(self, case: str, seconds: float, num_bytes: float) -> Measured:
        """A time beside what reading so many bytes takes at the bandwidth of now."""
        rate = self.bandwidth()
        limit = f"{num_bytes / 1e9:.3g} GB at {rate / 1e9:.0f} GB/s"
        return Measured(case, "time", seconds * 1e6, "us", limit, num_bytes / rate / seconds, self.sizes.runs)

    def beside(self, case: str, seconds: float, other: str, other_seconds: float) -> Measured:
        """A time beside that of another way to do the same."""
        return Measured(
            case, "time", seconds * 1e6, "us", f"{other}, {other_seconds * 1e6:.4g} us",
            other_seconds / seconds, self.sizes.runs,
        )  # fmt: skip
