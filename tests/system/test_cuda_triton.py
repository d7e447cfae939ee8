"""What if a GPU's memory and its kernels come together? The same bits, however a process is disturbed.

On a GPU where `make gpu` runs this; else under triton's interpreter, on the stand-in for the library.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

import pytest
import trio

from llmos.bench.server import Server, running_server
from syscalls.client import Client, open_client
from syscalls.sampling import Sampling
from syscalls.session import SpawnOptions
from tests.drivers.model_zoo import save_checkpoint
from tests.fake_cuda import load_fake
from tests.system.leaks import counted_server
from tests.system.middle import in_the_middle

if find_spec("triton") is None:  # not imported: that would choose between compiler and interpreter
    pytest.skip("triton is not installed (extra: cuda)", allow_module_level=True)
pytestmark = pytest.mark.slow

ON_GPU = os.environ.get("TRITON_INTERPRET") == "0"
# Frames of 64 KiB hold 128 tokens of this model, those of a GPU 4,096: two pages for the longest prompt.
SIZES = {
    "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 8192 if ON_GPU else 512,
}  # fmt: skip
FRAME_BYTES, LONGEST, CHUNK = (2 << 20, 4090, 700) if ON_GPU else (64 << 10, 126, 31)
POOL_FRAMES = 8 if ON_GPU else 16  # eight processes want twenty
PROMPTS = [tuple((7 * i + 3 * length) % 131 for i in range(length)) for length in (5, 20, LONGEST, 33)]
SAMPLING = [
    Sampling(),
    Sampling(temperature=0.8, seed=3, typical_p=0.9),
    Sampling(repetition_penalty=1.4, frequency_penalty=0.6),
    Sampling(temperature=1.0, top_p=0.9, seed=5, presence_penalty=0.8, logit_bias={7: 1.5}),
]
NUM_TOKENS = 96 if ON_GPU else 12  # ranked anew in between, many times


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """A tiny model on the GPU; else on the stand-in, under the interpreter."""
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(folder, "LlamaForCausalLM", **SIZES)
    size = ("--frame-kib", str(FRAME_BYTES >> 10), "--pool-mib", str(POOL_FRAMES * FRAME_BYTES >> 20))
    with pytest.MonkeyPatch.context() as patch:
        if not ON_GPU:
            patch.setenv("LLMOS_LIBCUDA", load_fake().library)
            patch.setenv("TRITON_INTERPRET", "1")
        yield ("--device", "cuda", "--threads", "1", "--model", str(folder), *size)


async def run_one(client: Client, i: int, num_forks: int = 0) -> list[tuple[int, ...]]:
    """A process and its forks, to their end."""
    options: SpawnOptions = {"max_tokens": NUM_TOKENS, "sampling": SAMPLING[i], "ignore_eos": True}
    if num_forks:
        fork = partial(client.fork, count=num_forks)
        parent, forked = await in_the_middle(client, fork, PROMPTS[i], **options)
        pids = [parent, *forked.pids]
    else:
        pids = list((await client.spawn(PROMPTS[i], **options)).pids)
    outputs = []
    for pid in pids:
        tokens: list[int] = []
        async for output in client.stream(pid):
            tokens += output.tokens
        await client.wait(pid)
        outputs.append(tuple(tokens))
    return outputs


@pytest.fixture(scope="module")
def quiet(options: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Each process alone: the truth."""

    async def one_after_the_other(server: Server) -> list[tuple[int, ...]]:
        async with open_client(server.socket_path) as client:
            (device,) = await client.devices()
            assert device.kernels != "torch"
            assert device.description.startswith("stand-in") != ON_GPU
            assert device.frame_bytes == FRAME_BYTES
            return [(await run_one(client, i))[0] for i in range(len(PROMPTS))]

    with running_server(*options, "--no-prefix-cache", gateway=False) as server:
        outputs = trio.run(one_after_the_other, server)
    assert all(len(tokens) == NUM_TOKENS for tokens in outputs)
    return outputs


async def test_together_cut_forked_and_swapped(
    options: tuple[str, ...], quiet: list[tuple[int, ...]]
) -> None:
    """All at once with a fork each, in chunks, with memory for a few: the same tokens."""
    little = ("--max-chunk-tokens", str(CHUNK), "--preempt", "swap")
    little += ("--swap-mib", str(8 * FRAME_BYTES >> 20 or 1), "--swap-file-mib", str(128 * FRAME_BYTES >> 20))
    little += ("--policy", "rerank", "--rerank-steps", "3")
    with counted_server(*options, *little, gateway=False) as server:
        results: dict[int, list[tuple[int, ...]]] = {}
        async with open_client(server.socket_path) as client, trio.open_nursery() as nursery:

            async def one(i: int) -> None:
                results[i] = await run_one(client, i, num_forks=1)

            for i in range(len(PROMPTS)):
                nursery.start_soon(one, i)
        async with open_client(server.socket_path) as client:
            (device,) = await client.devices()
    assert results == {i: [tokens, tokens] for i, tokens in enumerate(quiet)}
    assert device.num_preemptions > 0
    assert device.swap is not None
    assert device.swap.num_faulty_pages == 0
    assert sum(tier.num_bytes_in for tier in device.swap.tiers) > 0
