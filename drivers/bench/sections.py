"""The sections of `llmos bench cpu`: which cases there are, and what rows they give."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from drivers.bench import attention, step
from drivers.bench.gemm import INPUTS, OUTPUTS, WeightCopies, measure_gemm
from drivers.bench.models import DrivenModel, measure_decode, measure_prefill, measure_sampling
from drivers.bench.peaks import CACHE_SET_BYTES, make_stream, measure_cache_read, measure_peaks
from drivers.bench.random_model import SHAPES, random_native_model
from drivers.bench.rows import Case, Latest, Measured, Options, against_roof
from drivers.bench.torch_baseline import TorchAttention, TorchProduct
from llmos.device import Sampling
from native.pack import WeightFormat

__all__ = ["SECTIONS"]

GEMM_FORMATS = (WeightFormat.FP32, WeightFormat.BF16, WeightFormat.W8A8, WeightFormat.W4A8)
GEMM_ROWS = (1, 8, 16, 64, 512)
TORCH_FORMATS = (WeightFormat.FP32, WeightFormat.W8A8)  # the ones that torch multiplies, too
TORCH_ROWS = (64, 512)

ATTENTION_SHAPE = (32, 8, 64)  # query heads, kv heads, dimension
ATTENTION_FORMATS = ("fp16", "int8")
TORCH_ATTENTION = ("decode-8k", "prefill-512")

STEP_FORMATS = ("bf16", "w8a8", "w4a8")
STEP_ROWS = (1, 16)
STEP_CONTEXT = 128

SAMPLINGS = {
    "temperature": Sampling(temperature=0.8, seed=1),
    "top-k 50": Sampling(temperature=0.8, top_k=50, seed=1),
    "top-p 0.95": Sampling(temperature=0.8, top_p=0.95, seed=1),
    "penalties": Sampling(temperature=0.8, top_p=0.95, repetition_penalty=1.1, seed=1),
}
SAMPLING_BATCHES = (1, 16)

MODEL_SHAPES = ("160m", "1b")
MODEL_FORMATS = ("fp32", "bf16", "w8a8", "w4a8")
BATCHES = (1, 8, 32)
PROMPT_TOKENS, PREFILL_TOKENS = 32, 512


def peak_cases(options: Options) -> Iterator[Case]:
    """What the machine gives: memory, the last cache, int8 and fp32 arithmetic."""
    stream = make_stream(options.stream_bytes)

    def read_memory(num_threads: int) -> float:
        return measure_peaks(True, num_threads, stream).read_bytes_per_second

    def read_cache(size_bytes: int) -> Callable[[int], float]:
        return lambda num_threads: measure_cache_read(size_bytes, num_threads, stream)

    def multiply(is_integer: bool) -> Callable[[int], float]:
        return lambda num_threads: measure_peaks(is_integer, num_threads, stream).operations_per_second

    def case(name: str, unit: str, rate: Callable[[int], float], num_threads: int) -> Case:
        name = f"peaks: {name}, threads {num_threads}"

        def measure() -> Iterator[Measured]:
            rates, ratios = [], []
            for _ in range(options.runs):
                rates.append(rate(num_threads))
                ratios.append(rates[-1] / rate(1) if num_threads > 1 else 1.0)
            against = "one thread" if num_threads > 1 else "itself"
            value, ratio = statistics.median(rates) / 1e9, statistics.median(ratios)
            yield Measured(name, "rate", value, unit, against, ratio, options.runs)

        return Case(name, measure)

    for num_threads in options.thread_counts:
        yield case("read memory", "GB/s", read_memory, num_threads)
        for size in (64 << 10,) if options.is_quick else CACHE_SET_BYTES:
            yield case(f"read {size / 2**20:g} MiB a thread", "GB/s", read_cache(size), num_threads)
        yield case("int8 multiply-adds", "GOP/s", multiply(True), num_threads)
        yield case("fp32 multiply-adds", "GOP/s", multiply(False), num_threads)


def gemm_cases(options: Options) -> Iterator[Case]:
    """Packed products against the peaks, and beside torch's products of the same numbers."""
    n, k = (256, 256) if options.is_quick else (OUTPUTS, INPUTS)
    formats = (WeightFormat.W8A8,) if options.is_quick else GEMM_FORMATS
    ours, theirs = ((8,), (32,)) if options.is_quick else (GEMM_ROWS, TORCH_ROWS)
    copies_of = Latest(lambda weight_format: WeightCopies(weight_format, n, k, options.stream_bytes))
    torch_of = Latest(lambda weight_format: TorchProduct(weight_format, n, k, options.stream_bytes))
    stream = make_stream(options.stream_bytes)

    def case(weight_format: WeightFormat, num_threads: int, num_rows: int, is_torch: bool) -> Case:
        name = f"gemm: {weight_format.name.lower()} {n} x {k}, rows {num_rows}, threads {num_threads}"

        def against_peaks() -> Iterator[Measured]:
            row = measure_gemm(copies_of(weight_format), num_rows, num_threads, options.runs, stream)
            yield against_roof(name, "time", row.microseconds, "us", row, weight_format.is_quantised)

        def against_torch() -> Iterator[Measured]:
            own, other = copies_of(weight_format), torch_of(weight_format)
            yield beside(
                name, other.name, options.runs,
                lambda: own.seconds(num_rows, num_threads), lambda: other.seconds(num_rows, num_threads),
            )  # fmt: skip

        return Case(name, against_torch if is_torch else against_peaks)

    for weight_format in formats:
        for num_threads in options.thread_counts:
            yield from (case(weight_format, num_threads, num_rows, False) for num_rows in ours)
            if weight_format in TORCH_FORMATS:
                yield from (case(weight_format, num_threads, num_rows, True) for num_rows in theirs)


def attention_cases(options: Options) -> Iterator[Case]:
    """One layer's attention in a step against the peaks; int8 beside fp16, and fp16 beside torch."""
    shape = ATTENTION_SHAPE
    formats: tuple[str, ...] = ATTENTION_FORMATS
    steps = dict(attention.CASES)
    torch_steps: tuple[str, ...] = TORCH_ATTENTION
    if options.is_quick:
        steps = {"decode-64": attention.Case("decode-64", 63, 1)}
        formats, torch_steps = ("int8",), ("decode-64",)
    cache_of = Latest(
        lambda kv_format, positions: attention.CacheLayers(kv_format, shape, positions, options.stream_bytes)
    )
    stream = make_stream(options.stream_bytes)

    def name(at: attention.Case, kv_format: str, num_threads: int) -> str:
        return f"attention: {at.name}, {kv_format}, heads {shape[0]}/{shape[1]}, threads {num_threads}"

    def against_peaks(at: attention.Case, kv_format: str, num_threads: int) -> Case:
        case = name(at, kv_format, num_threads)

        def measure() -> Iterator[Measured]:
            cache = cache_of(kv_format, at.num_positions)
            row = attention.measure_attention(cache, at, num_threads, options.runs, stream)
            yield against_roof(case, "time", row.microseconds, "us", row, is_integer=False)

        return Case(case, measure)

    def against_other(at: attention.Case, kv_format: str, num_threads: int) -> Case:
        case = name(at, kv_format, num_threads)

        def measure() -> Iterator[Measured]:
            cache = cache_of(kv_format, at.num_positions)
            if kv_format == "int8":
                wide = attention.CacheLayers("fp16", shape, at.num_positions, options.stream_bytes)
                other, their_seconds = "fp16", lambda: wide.seconds(at, num_threads)
            else:
                theirs = TorchAttention(shape, at.num_positions, options.stream_bytes)
                other, their_seconds = theirs.name, lambda: theirs.seconds(at.num_tokens, num_threads)
            yield beside(case, other, options.runs, lambda: cache.seconds(at, num_threads), their_seconds)

        return Case(case, measure)

    for at in steps.values():
        for kv_format in formats:
            for num_threads in options.thread_counts:
                yield against_peaks(at, kv_format, num_threads)
                if kv_format == "int8" or at.name in torch_steps:
                    yield against_other(at, kv_format, num_threads)


def step_cases(options: Options) -> Iterator[Case]:
    """The forward pass of small models, against the last cache and a few microseconds for each layer."""
    shapes, formats = (("stories260k",), ("w8a8",)) if options.is_quick else (step.SHAPES, STEP_FORMATS)
    row_counts = (2,) if options.is_quick else STEP_ROWS
    model_of = Latest(
        lambda shape, weights, num_threads: random_native_model(
            shape, weights, "fp16", num_threads, STEP_CONTEXT + 1
        )
    )

    def case(shape: str, weights: str, num_threads: int, num_rows: int) -> Case:
        name = f"step: {shape} {weights}, batch {num_rows}, threads {num_threads}"

        def measure() -> Iterator[Measured]:
            step_case = step.StepCase(model_of(shape, weights, num_threads), num_rows, 1, STEP_CONTEXT)
            row = step.measure_step(step_case, shape, options.runs)
            limit = (
                f"read {row.read_bytes_per_second / 1e9:.1f} GB/s + {step.LAYER_SECONDS * 1e6:.0f} us a layer"
            )
            yield Measured(name, "time", row.microseconds, "us", limit, 1 / row.limit_ratio, options.runs)
            whole = row.microseconds + row.python_microseconds
            yield Measured(
                name, "time with Python", whole, "us", "without", row.microseconds / whole, options.runs
            )

        return Case(name, measure)

    for shape in shapes:
        for weights in formats:
            for num_threads in options.thread_counts:
                yield from (case(shape, weights, num_threads, num_rows) for num_rows in row_counts)


def beside(
    case: str, other: str, num_runs: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> Measured:
    """A row whose baseline is another way to do the same, measured in turn."""
    pairs = [(ours(), theirs()) for _ in range(num_runs)]
    seconds = statistics.median(own for own, _ in pairs)
    ratio = statistics.median(their / own for own, their in pairs)
    return Measured(case, "time", seconds * 1e6, "us", other, ratio, num_runs)


def sampling_cases(options: Options) -> Iterator[Case]:
    """Steps of a model that is nearly all vocabulary, with random tokens beside greedy ones."""
    shape = "tiny" if options.is_quick else "head"
    names = ("temperature",) if options.is_quick else tuple(SAMPLINGS)
    batches = (2,) if options.is_quick else SAMPLING_BATCHES
    model_of = Latest(lambda num_threads: DrivenModel(shape, "w8a8", num_threads), DrivenModel.close)

    def case(num_threads: int, kind: str, batch: int) -> Case:
        vocabulary = SHAPES[shape].vocab_size
        name = f"sampling: {kind}, vocabulary {vocabulary}, batch {batch}, threads {num_threads}"

        def measure() -> Iterator[Measured]:
            seconds, greedy = measure_sampling(model_of(num_threads), batch, SAMPLINGS[kind], options.runs)
            yield Measured(
                name,
                "step",
                seconds * 1e6,
                "us",
                f"greedy, {greedy * 1e6:.0f} us",
                greedy / seconds,
                options.runs,
            )

        return Case(name, measure)

    for num_threads in options.thread_counts:
        for kind in names:
            yield from (case(num_threads, kind, batch) for batch in batches)


def decode_cases(options: Options) -> Iterator[Case]:
    """Whole models with random weights: decoding in batches, and a prompt, on all threads."""
    shapes, formats = (("tiny",), ("w8a8",)) if options.is_quick else (MODEL_SHAPES, MODEL_FORMATS)
    batches, prompt = ((2,), 24) if options.is_quick else (BATCHES, PREFILL_TOKENS)
    model_of = Latest(
        lambda shape, weights: DrivenModel(shape, weights, options.num_threads), DrivenModel.close
    )
    stream = make_stream(options.stream_bytes)

    def case(shape: str, weights: str, batch: int | None) -> Case:
        what = f"prefill {prompt}" if batch is None else f"batch {batch}"
        name = f"decode: {shape} {weights}, {what}, threads {options.num_threads}"

        def measure() -> Iterator[Measured]:
            model = model_of(shape, weights)
            if batch is None:
                found = measure_prefill(model, prompt, options.runs, stream)
            else:
                found = measure_decode(model, batch, PROMPT_TOKENS, options.runs, stream)
            yield against_roof(
                name, "throughput", found.tokens_per_second, "tokens/s", found, model.is_integer
            )

        return Case(name, measure)

    for shape in shapes:
        for weights in formats:
            yield from (case(shape, weights, batch) for batch in (*batches, None))


SECTIONS: dict[str, Callable[[Options], Iterator[Case]]] = {
    "peaks": peak_cases,
    "gemm": gemm_cases,
    "attention": attention_cases,
    "step": step_cases,
    "sampling": sampling_cases,
    "decode": decode_cases,
}
