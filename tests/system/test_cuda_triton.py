"""What if a GPU's memory and its kernels come together? Triton's interpreter on a stand-in: the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import trio

from llmos.bench.server import Server, running_server
from syscalls.client import Client, open_client
from syscalls.sampling import Sampling
from tests.drivers.model_zoo import save_checkpoint
from tests.fake_cuda import load_fake
from tests.system.leaks import counted_server

if find_spec("triton") is None:  # not imported: that would choose between compiler and interpreter
    pytest.skip("triton is not installed (extra: cuda)", allow_module_level=True)
pytestmark = pytest.mark.slow

# Frames of 64 KiB hold 128 tokens of this model: two pages for the longest prompt.
SIZES = {
    "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
PROMPTS = [tuple((7 * i + 3 * length) % 131 for i in range(length)) for length in (5, 20, 126, 33)]
SAMPLING = [
    Sampling(),
    Sampling(temperature=0.8, seed=3, typical_p=0.9),
    Sampling(repetition_penalty=1.4, frequency_penalty=0.6),
    Sampling(temperature=1.0, top_p=0.9, seed=5, presence_penalty=0.8, logit_bias={7: 1.5}),
]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """A tiny model on the stand-in, under the interpreter."""
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(folder, "LlamaForCausalLM", **SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMOS_LIBCUDA", load_fake().library)
        patch.setenv("TRITON_INTERPRET", "1")
        yield ("--device", "cuda", "--threads", "1", "--model", str(folder), "--frame-kib", "64")


async def run_one(client: Client, i: int, num_forks: int = 0) -> list[tuple[int, ...]]:
    """A process and its forks, to their end."""
    pids = list(
        (await client.spawn(PROMPTS[i], max_tokens=NUM_TOKENS, sampling=SAMPLING[i], ignore_eos=True)).pids
    )
    if num_forks:
        await client.read(pids[0])
        pids += (await client.fork(pids[0], num_forks)).pids
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
            return [(await run_one(client, i))[0] for i in range(len(PROMPTS))]

    with running_server(*options, "--no-prefix-cache", gateway=False) as server:
        outputs = trio.run(one_after_the_other, server)
    assert all(len(tokens) == NUM_TOKENS for tokens in outputs)
    return outputs


async def test_together_cut_forked_and_swapped(
    options: tuple[str, ...], quiet: list[tuple[int, ...]]
) -> None:
    """All at once with a fork each, in chunks, with memory for a few: the same tokens."""
    little = ("--pool-mib", "1", "--max-chunk-tokens", "31", "--preempt", "swap", "--swap-mib", "8")
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
