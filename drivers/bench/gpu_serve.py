"""What `llmos up` serves, beside transformers on the same device in the same run."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator

import torch

from drivers.bench.gpu_setup import Served, Setup
from drivers.bench.rows import Measured

__all__ = ["measure_serving"]


def measure_serving(setup: Setup) -> Iterator[Measured]:
    """Tokens a second of a batch of prompts, from the first prompt's begin to the last token.

    What llmos serves was measured before, by `llmos bench gpu`: see llmos/bench/gpu_serve.py.
    """
    assert setup.served is not None
    served = setup.served
    what = f"{served.num_prompts} prompts of {served.prompt_tokens} tokens, {served.output_tokens} out"
    case = f"serving: llmos up, {what}"
    if importlib.util.find_spec("transformers") is None:
        setup.left_out.append((case, "transformers is not installed"))
        return
    if not setup.has_time(case):
        return
    rate = served.num_prompts * served.output_tokens / _transformers_seconds(setup, served)
    yield Measured(
        case, "throughput", served.rate, "tokens/s", f"transformers, {rate:.4g} tokens/s", served.rate / rate,
        setup.sizes.runs,
    )  # fmt: skip


def _transformers_seconds(setup: Setup, served: Served) -> float:
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
    ).to(setup.device, sizes.served_dtype)  # fmt: skip
    prompts = torch.randint(
        config.vocab_size, (served.num_prompts, served.prompt_tokens), device=setup.device
    )
    mask = torch.ones_like(prompts)

    def run() -> None:
        with torch.inference_mode():
            model.generate(
                prompts, attention_mask=mask, do_sample=False, min_new_tokens=served.output_tokens,
                max_new_tokens=served.output_tokens,
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
