"""`return_progress`: a stream tells how far its prompt is computed, until the first token."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from shell.gateway.replies.chat import ChatChunk
from shell.gateway.replies.completions import TextChunk
from syscalls.process import ExitStatus, Stat
from tests.gateway.harness import Gateway, KernelThread, hello, http_request, read_until
from tests.gateway.test_gateway_errors import CHAT, COMPLETIONS
from tests.scripted_kernel import END, STOPPED_BY_MODEL, ScriptedProcess


def progress_of(events: list[Any]) -> list[tuple[int, int, int]]:
    """Total, found and processed, as they were told."""
    told = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    return [(each["total"], each["cache"], each["processed"]) for each in told]


@pytest.mark.parametrize("is_chat", [True, False])
def test_progress_is_told_until_the_first_token(
    gateway: Gateway, kernel: KernelThread, is_chat: bool
) -> None:
    """Each number once, in chunks without choices that have what all chunks have; two prompts in sum."""
    steps = [kernel.make_event() for _ in range(3)]

    async def program(process: ScriptedProcess) -> ExitStatus:
        process.num_computed = 1
        await steps[0].wait()
        process.num_computed, process.num_cached_tokens = 2, 1
        await steps[1].wait()
        process.num_computed = len(process.spawn.prompt)
        await steps[2].wait()
        await process.emit(ord("a"))
        await process.wait_read()
        await process.emit(END)
        return STOPPED_BY_MODEL

    kernel.program = program
    options = {"stream": True, "return_progress": True, "stream_options": {"include_usage": True}}
    body = hello(**options, n=2) if is_chat else {"prompt": ["abc", "defg"], **options}
    num_counted = 1 if is_chat else 2
    with gateway.connect() as raw:
        raw.sendall(http_request(CHAT if is_chat else COMPLETIONS, body, headers="Connection: close\r\n"))
        received = b""
        total = 5 if is_chat else 7
        for step, processed in zip(steps, (num_counted, 2 * num_counted, total), strict=True):
            received += read_until(raw, b'"processed":%d,' % processed)
            kernel.call(step.set)
        received += read_until(raw, b"[DONE]\n\n")
    events = [json.loads(line[6:]) for line in received.split(b"\n") if line.startswith(b"data: {")]
    msgspec.convert(events, list[ChatChunk] if is_chat else list[TextChunk])
    told = progress_of(events)
    awaited = [
        (total, 0, num_counted),
        (total, num_counted, 2 * num_counted),
        (total, num_counted, total),
    ]
    assert [each for each in told if each in awaited] == awaited
    assert told == sorted(told)  # of two prompts one may have been seen before it went on, the other after
    assert told == awaited or not is_chat
    assert [event["choices"] == [] for event in events[: len(told) + 1]] == [True] * len(told) + [False]
    assert all(event["usage"] is None for event in events[:-1])


def test_who_does_not_ask_is_told_nothing(gateway: Gateway, kernel: KernelThread) -> None:
    """No event has it, and nobody looks at the process."""
    response = gateway.post(CHAT, hello(stream=True, return_progress=False))
    assert "prompt_progress" not in response.text
    assert not any(isinstance(call, Stat) for call in kernel.kernel.calls)
