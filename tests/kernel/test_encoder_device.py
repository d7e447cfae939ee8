"""A device of its own for an encoder: texts go to it whole, beside chats on the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from drivers.builtin import base_path
from drivers.sim import SimDriver
from llmos.config import Config, ConfigError
from llmos.loads import ENCODER, encoder_load_message, load_message
from syscalls.embedding import Embed, Pooling
from syscalls.errno import Errno, SyscallError
from syscalls.process import Spawned
from tests.kernel.harness import MODEL, running_kernel

OPTIONS = {"embedding_model": str(base_path()), "embedding_name": "encoder"}


def make_sim(name: str) -> SimDriver:
    """A device for chats, or the encoder, whose texts have at most 100 tokens."""
    if name == ENCODER:
        return SimDriver(name=name, encodes=True, max_model_len=100, record=True)
    return SimDriver(name=name, record=True)


def prompt(number: int, length: int) -> tuple[int, ...]:
    """A text that nobody else has."""
    return tuple((number * 37 + i) % 500 for i in range(length))


async def test_texts_go_whole_to_the_encoder(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A step has as many as it may hold, at least one; chats decode meanwhile; nothing is cached."""
    async with running_kernel(tmp_path, make_sim, **OPTIONS, max_step_tokens=64) as kernel:
        client = kernel.client
        texts = [prompt(i, 1 + (i * 31) % 100) for i in range(40)]
        (chat,) = (await client.spawn(prompt(99, 30), max_tokens=50, auto_reap=True)).pids
        for _ in range(2):
            outputs = (await client.embed(texts)).outputs
            assert [output.vector for output in outputs] == [
                MODEL.expected_vector(text, Pooling("mean")) for text in texts
            ]
            assert {output.usage.num_cached_tokens for output in outputs} == {0}
        (output,) = (await client.embed([texts[0]], model="encoder", pooling="cls")).outputs
        assert output.vector == MODEL.expected_vector(texts[0], Pooling("cls"))
        (output,) = (await client.embed([texts[3]], model="llmos-base")).outputs
        assert output.vector == MODEL.expected_vector(texts[3], Pooling("last"))
        tokens = [token async for output in client.stream(chat) for token in output.tokens]
        assert tuple(tokens) == MODEL.expected_tokens(prompt(99, 30), 50)
        with pytest.raises(SyscallError, match=r"pin_seconds is 1\.0; the limit is 0 to 0$"):
            await client.embed([texts[0]], pin_seconds=1.0)
        (encoder,) = kernel.sims[ENCODER]
        sizes = [[row.num_tokens for row in step.rows] for step in encoder.steps if step.rows]
        assert all(len(rows) == 1 or sum(rows) <= 64 for rows in sizes)
        assert max(map(len, sizes)) > 1
        assert max(map(sum, sizes)) > 64
        (chats,) = kernel.sims["sim:0"]
        assert sum(row.pool for step in chats.steps for row in step.rows) == 1


async def test_the_encoder_is_lost_and_comes_back(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Its texts are computed again; the other device sees nothing of it."""
    async with running_kernel(tmp_path, make_sim, **OPTIONS, max_step_tokens=64) as kernel:
        texts = [prompt(i, 60) for i in range(40)]
        found: list[bytes] = []

        async def embed() -> None:
            found.extend(output.vector for output in (await kernel.client.embed(texts)).outputs)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(embed)
            await trio.sleep(0.1)
            kernel.sims[ENCODER][-1].kill()
        assert found == [MODEL.expected_vector(text, Pooling("mean")) for text in texts]
        assert len(kernel.sims[ENCODER]) == 2
        assert len(kernel.sims["sim:0"]) == 1


async def test_what_each_can_do(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Both are listed, the model first; the encoder makes no text, and has its own limits."""
    async with running_kernel(tmp_path, make_sim, **OPTIONS) as kernel:
        client = kernel.client
        models = await client.models()
        assert [(model.name, model.generates) for model in models] == [
            ("llmos-base", True),
            ("encoder", False),
        ]
        assert [device.name for device in await client.devices()] == ["sim:0", ENCODER]
        refusals = (
            (client.spawn((1, 2), model="encoder"), Errno.EINVAL, "'encoder' makes no text"),
            (client.embed([(1,) * 101]), Errno.E2BIG, "101 tokens; the context is 100"),
            (client.embed([(1,)], pooling="last"), Errno.EINVAL, "'encoder' can do mean, cls"),
            (client.spawn((1,), model="other"), Errno.ENOENT, "'encoder', 'llmos-base' is served"),
        )
        for call, errno, message in refusals:
            with pytest.raises(SyscallError, match=message) as refused:
                await call
            assert refused.value.errno is errno


async def test_an_image_of_the_encoder_goes_back_to_it(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """A text that waits is saved; restored, it is computed where its model is, not by the first model."""
    async with running_kernel(tmp_path, make_sim, **OPTIONS, max_step_tokens=64) as kernel:
        client = kernel.client
        texts = tuple(prompt(i, 60) for i in range(5))
        embedding = await client.call(Embed(texts, auto_reap=True))
        assert isinstance(embedding, Spawned)
        *others, last = embedding.pids
        await client.stop(last)
        await client.checkpoint(last, "text")
        await client.kill(last)
        (pid,) = (await client.restore("text", auto_reap=True)).pids
        assert (await client.stat(pid)).device == ENCODER
        output = await client.read(pid)
        assert output.vector == MODEL.expected_vector(texts[-1], Pooling("mean"))
        for other in (*others, last):
            await client.read(other)


def test_two_models_of_one_name_are_refused() -> None:
    """Clients could not tell them apart."""
    config = Config(name="same", embedding_name="same")
    load = load_message(config, "/a/model")
    with pytest.raises(ConfigError, match="both called 'same': set embedding_name"):
        encoder_load_message(config, load, "/b/encoder")
    assert encoder_load_message(Config(), load, "/b/encoder").name == "encoder"
