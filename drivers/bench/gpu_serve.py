"""Prompts and tokens through the driver's engine, beside transformers on the same device, in turn."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator

import torch

from drivers.bench.gpu_model import FORMATS, random_transformer
from drivers.bench.gpu_setup import Setup
from drivers.bench.rows import Measured
from drivers.cuda import CudaDriver
from drivers.engine import Engine
from drivers.model.loader import ProgressCallback
from drivers.model.transformer import Transformer
from llmos.device import Bind, Edit, Load, Loaded, Map, Quality, Release, Reserve, Row, Sampling, Step

__all__ = ["measure_serving"]


class RandomCudaDriver(CudaDriver):
    """The GPU, with a random model in place of what a load names."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup.memory.index)
        self._setup = setup

    def load_model(self, load: Load, report: ProgressCallback) -> tuple[Transformer, Quality | None]:
        """See Backend."""
        assert load.max_model_len is not None
        sizes = self._setup.sizes
        made = random_transformer(sizes.served, sizes.dtype, self._setup.device, load.max_model_len)
        return made, None


def measure_serving(setup: Setup) -> Iterator[Measured]:
    """Tokens a second of a batch of prompts, from the first prompt's begin to the last token."""
    sizes = setup.sizes
    what = f"batch {sizes.served_batch}, {sizes.served_prompt} tokens in, {sizes.served_tokens} out"
    case = f"serving: engine, {what}"
    if importlib.util.find_spec("transformers") is None:
        setup.left_out.append(f"{case}: transformers is not installed")
        return
    if not setup.has_time(case):
        return
    count = sizes.served_batch * sizes.served_tokens
    seconds = _engine_seconds(setup)
    other = _transformers_seconds(setup)
    rate, other_rate = count / seconds, count / other
    yield Measured(
        case, "throughput", rate, "tokens/s", f"transformers, {other_rate:.4g} tokens/s", rate / other_rate,
        sizes.runs,
    )  # fmt: skip


def _engine_seconds(setup: Setup) -> float:
    sizes = setup.sizes
    length = sizes.served_prompt + sizes.served_tokens
    driver = RandomCudaDriver(setup)
    engine = Engine(driver, debug=False)
    name = FORMATS[sizes.dtype]
    most = sizes.served_batch * sizes.served_prompt
    loaded = engine.load(
        Load("random", "random", name, name, None, None, sizes.served_batch, length, most),
        lambda done, total, what: None,
    )
    try:
        if not isinstance(loaded, Loaded):
            raise RuntimeError(loaded.message)
        kv, pages = loaded.kv, loaded.kv.num_pages(length)
        edits: list[Edit] = []
        pfn = 0
        for asid in range(sizes.served_batch):
            edits += [Reserve(asid), Bind(asid, Sampling(), (), 0)]
            for vpn in range(pages):
                edits.append(Map(asid, vpn, tuple(range(pfn, pfn + kv.frames_per_page))))
                pfn += kv.frames_per_page
        engine.run_step(Step(0, tuple(edits), ()))
        prompt = tuple(index % sizes.served.vocab_size for index in range(sizes.served_prompt))

        def run() -> None:
            for step in range(sizes.served_tokens):
                start = sizes.served_prompt + step - 1
                rows = [
                    Row(asid, start, (), True) if step else Row(asid, 0, prompt, True)
                    for asid in range(sizes.served_batch)
                ]
                done = engine.run_step(Step(step, (), tuple(rows)))
                if done.faults:
                    raise RuntimeError(done.faults[0].message)

        seconds = _least_seconds(setup, run)
        engine.run_step(Step(0, tuple(Release(asid) for asid in range(sizes.served_batch)), ()))
        return seconds
    finally:
        engine.close()
        driver.close()


def _transformers_seconds(setup: Setup) -> float:
    import transformers  # here: it takes seconds, and nothing else needs it

    sizes, config = setup.sizes, setup.sizes.served
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size, num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim, max_position_embeddings=config.max_positions, eos_token_id=None,
            pad_token_id=0,
        )
    ).to(setup.device, sizes.dtype)  # fmt: skip
    prompts = torch.randint(config.vocab_size, (sizes.served_batch, sizes.served_prompt), device=setup.device)
    mask = torch.ones_like(prompts)

    def run() -> None:
        with torch.inference_mode():
            model.generate(
                prompts, attention_mask=mask, do_sample=False, min_new_tokens=sizes.served_tokens,
                max_new_tokens=sizes.served_tokens,
            )  # fmt: skip
        setup.synchronize()

    return _least_seconds(setup, run)


def _least_seconds(setup: Setup, run: Callable[[], None]) -> float:
    """The shorter of two, after one that warms up."""
    times = []
    for _ in range(3 if setup.is_gpu else 1):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times[1:] or times)
