"""Two steps in flight, beside one after the other: the same answers, whatever happens between them.

On a GPU where `make gpu` runs this; else on the stand-in for the library, with torch on the processor.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from model_zoo import save_checkpoint
from planning_kernel import GRAMMAR_ID, GRAMMAR_WAY, MAX_LEN, NUM_FRAMES, NUM_SPACES, WAYS, Kernel
from tokenizers import Tokenizer, decoders, models

from drivers.cuda import CudaDriver
from drivers.engine import Engine
from drivers.host import serve
from drivers.link import KernelLink
from drivers.model.step_queue import MAX_IN_FLIGHT
from llmos.device import (
    LENGTH,
    Compile,
    Compiled,
    FromDriver,
    Hello,
    Load,
    Loaded,
    Progress,
    StepDone,
    StopDriver,
    encode_message,
    from_driver_decoder,
)  # fmt: skip
from native.cuda.device import CudaDevice
from tests.fake_cuda import load_fake

ON_GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
FRAME_BYTES = 2 << 20 if ON_GPU else 1 << 13
NAN_TOKEN = 99
IS_LATE = tuple(way in (4, 5, 8) for way in range(len(WAYS)))  # its draw takes the token before
GRAMMAR = "start: /([a-m]|[0-4][!-Z])+/"


class OneStepDriver(CudaDriver):
    """A GPU whose every step is waited for."""

    def open_queue(self, *arguments: object) -> None:  # type: ignore[override]
        """See Backend."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of one layer whose embedding of a token is NaN."""
    folder = tmp_path_factory.mktemp("llama")
    save_checkpoint(folder, "LlamaForCausalLM", num_hidden_layers=1)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][NAN_TOKEN] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    vocabulary = {"<pad>": 0, "<end>": 1} | {chr(code): code - 31 for code in range(33, 127)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def load_message(checkpoint: Path) -> Load:
    """What each driver loads."""
    pool = NUM_FRAMES * FRAME_BYTES
    return Load(str(checkpoint), "tiny", "fp32", "auto", pool, FRAME_BYTES, NUM_SPACES, MAX_LEN, 64)


def load_engine(driver: CudaDriver, checkpoint: Path) -> tuple[Engine, Loaded]:
    """An engine in debug mode."""
    engine = Engine(driver, debug=True)
    loaded = engine.load(load_message(checkpoint), lambda *progress: None)
    assert isinstance(loaded, Loaded), loaded
    engine.begin_grammars([Compile(GRAMMAR_ID, GRAMMAR)])
    while not (answers := engine.collect()):
        descriptors, seconds = engine.wait_for()
        select.select(descriptors, (), (), seconds)
    assert isinstance(answers[0], Compiled)
    assert answers[0].problem is None
    return engine, loaded


@pytest.fixture(scope="module")
def engines(checkpoint: Path) -> Iterator[tuple[Engine, Engine, Loaded]]:
    """With two steps in flight, and one after the other."""
    fake = load_fake()
    with pytest.MonkeyPatch.context() as patch:
        if not ON_GPU:
            fake.reset()
            fake.set_granule(FRAME_BYTES)
            patch.setenv("LLMOS_LIBCUDA", fake.library)
            patch.delenv("TRITON_INTERPRET", raising=False)  # torch's operations: a hundred times as fast
        drivers = [CudaDriver(), OneStepDriver()]
        (two, loaded), (one, _) = (load_engine(driver, checkpoint) for driver in drivers)
        yield two, one, loaded
        for engine, driver in zip((two, one), drivers, strict=True):
            engine.close()
            driver.close()
    if not ON_GPU:
        assert not any(fake.count_live())
        fake.reset()


def without_time(answer: StepDone) -> StepDone:
    """All but how long it took, and what was mapped meanwhile."""
    return msgspec.structs.replace(answer, seconds=0.0, maps=None)


Action = tuple[str, int, int]
ACTIONS = st.tuples(
    st.sampled_from(["spawn", "spawn", "end", "preempt", "fork", "turn", "finish", "skip", "none", "none"]),
    st.integers(0, NUM_SPACES - 1),
    st.integers(0, 2 * len(WAYS) + 5),
)


def carry_out(kernel: Kernel, action: Action) -> set[int]:
    """What happens before a step; the spaces that have no row in it."""
    name, asid, number = action
    process = kernel.processes.get(asid)
    for failed in [asid for asid, each in kernel.processes.items() if each.is_failed]:
        kernel.end(failed)
    if name == "spawn" and process is None:
        is_bad = number >= 2 * len(WAYS)
        prompt = [(7 * i + 3 * number) % NAN_TOKEN for i in range(3 + 9 * (number % 3))]
        kernel.begin(asid, [*prompt, NAN_TOKEN] if is_bad else prompt, number % len(WAYS), len(prompt))
    elif name == "finish":
        kernel.finish()
    elif name == "skip":
        return {asid}
    elif process is None or process.is_failed:
        return set()
    elif name == "end":
        kernel.end(asid)
    elif name == "preempt":
        kernel.preempt(asid)
    elif name == "turn" and process.num_scheduled >= len(process.tokens) - 1 >= process.num_prompt:
        if len(process.tokens) < MAX_LEN // 2:
            kernel.turn(asid)
    elif name == "fork" and (free := sorted(set(range(NUM_SPACES)) - set(kernel.processes))):
        kernel.fork(asid, free[0])
    return set()


@settings(
    max_examples=60 if ON_GPU else 40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(actions=st.lists(ACTIONS, min_size=4, max_size=24), chunk=st.sampled_from([4, 64]))
@example(
    actions=[("spawn", 0, 0), ("spawn", 1, 1), *[("none", 0, 0)] * 6, ("end", 0, 0), ("spawn", 0, 1)]
    + [("none", 0, 0)] * 4,
    chunk=64,
)
@example(actions=[("spawn", asid, asid) for asid in range(4)] + [("none", 0, 0)] * 8, chunk=4)
@example(actions=[("spawn", asid, 4 + asid) for asid in range(4)] + [("none", 0, 0)] * 8, chunk=64)
@example(actions=[("spawn", asid, 8 + asid) for asid in range(4)] + [("none", 0, 0)] * 8, chunk=64)
@example(
    actions=[("spawn", 0, 2), ("spawn", 1, 9), *[("none", 0, 0)] * 4, ("turn", 0, 0), ("preempt", 1, 0)]
    + [("none", 0, 0), ("fork", 0, 0), ("none", 0, 0), ("end", 0, 0), ("spawn", 0, 9)]
    + [("none", 0, 0)] * 4,
    chunk=4,
)
@example(actions=[("spawn", asid, 5 + asid) for asid in range(4)] + [("fork", 3, 0)] * 8, chunk=64)
@example(
    actions=[("spawn", asid, way) for asid, way in enumerate((11, 14, 15, 16))]
    + [("none", 0, 0), ("preempt", 0, 0), ("turn", 2, 0), ("none", 0, 0), ("end", 1, 0), ("fork", 3, 0)]
    + [("none", 0, 0)] * 4,
    chunk=4,
)
@example(
    actions=[("spawn", way, 2 * len(WAYS) + way) for way in (0, 2)]
    + [("spawn", 1, 4), ("spawn", 3, 2 * len(WAYS) + 4)]
    + [("none", 0, 0)] * 5,
    chunk=64,
)
def test_answers_are_those_of_one_step_after_the_other(
    engines: tuple[Engine, Engine, Loaded], actions: list[Action], chunk: int
) -> None:
    """Spawn, end, preempt, fork, next turn, faults: each answer of each step, late tokens included."""
    two, one, loaded = engines
    kernel = Kernel(two, loaded)
    for action in actions:
        kernel.issue(carry_out(kernel, action), chunk)
    kernel.finish()
    for asid in list(kernel.processes):
        kernel.end(asid)
    kernel.issue(set(), chunk)
    kernel.finish()
    expected = [one.run_step(step) for step in kernel.steps]
    assert list(map(without_time, kernel.answers)) == list(map(without_time, expected))


def test_tokens_are_fed_on_the_device(engines: tuple[Engine, Engine, Loaded]) -> None:
    """All go on before the host knows their tokens, some with late draws."""
    two, _, loaded = engines
    assert two._session is not None
    pipeline = two._session.pipeline
    assert pipeline is not None
    for way, is_late in enumerate(IS_LATE):
        kernel = Kernel(two, loaded)
        before, late_before = pipeline.num_fed, pipeline.num_drawn_late
        kernel.begin(0, [3, 1, 4], way, 3)
        for _ in range(5):
            kernel.issue(set(), 64)
        assert pipeline.num_fed == before + 4, WAYS[way]
        assert pipeline.num_drawn_late == late_before + (4 if is_late else 0), WAYS[way]
        assert len(kernel.in_flight) == (1 if is_late else 2)
        assert two.is_busy
        assert two.wants_step == (len(kernel.in_flight) == 1)
        while kernel.in_flight:  # answers come without another step
            kernel.take([answer for answer in two.collect() if isinstance(answer, StepDone)])
            select.select(two.wait_for()[0], (), ()) if kernel.in_flight else None
        assert not two.is_busy
        kernel.end(0)
        kernel.issue(set(), 64)
        kernel.finish()


def test_a_step_behind_another_waits_for_nothing(
    engines: tuple[Engine, Engine, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps included: of the library's calls that wait, the thread that launches makes none."""
    two, _, loaded = engines
    calls: list[str] = []
    call, launching = CudaDevice.call, threading.get_ident()

    def note(device: CudaDevice, name: str, *arguments: object) -> None:
        if threading.get_ident() == launching:
            calls.append(name)
        call(device, name, *arguments)

    monkeypatch.setattr(CudaDevice, "call", note)
    kernel = Kernel(two, loaded)
    for asid, way in enumerate((0, 2, 3, 9)):
        kernel.begin(asid, [3, 1, 4], way, 3)
    kernel.issue(set(), 64)
    kernel.take_oldest()
    calls.clear()
    for _ in range(4):
        kernel.issue(set(), 64)
        if len(kernel.in_flight) == MAX_IN_FLIGHT:
            assert not {name for name in calls if "Synchronize" in name}
            assert "cuEventRecord" in calls
            kernel.take_oldest()
            calls.clear()
    for asid in range(4):
        kernel.end(asid)
    kernel.issue(set(), 64)
    kernel.finish()


def test_a_driver_answers_in_order(engines: tuple[Engine, Engine, Loaded], checkpoint: Path) -> None:
    """Steps that lie ready in the socket, more than are ever in flight: the same answers, one by one."""
    two, _, loaded = engines
    kernel = Kernel(two, loaded)
    for action in [("spawn", 0, 0), ("spawn", 1, 1), ("none", 0, 0), ("spawn", 2, 2), ("fork", 1, 0)]:
        kernel.issue(carry_out(kernel, action), 64)
    for asid in range(4):
        kernel.issue({asid}, 64)
    kernel.finish()
    for asid in list(kernel.processes):
        kernel.end(asid)
    kernel.issue(set(), 64)
    kernel.finish()
    ours, theirs = socket.socketpair()

    def run_driver() -> None:
        serve(KernelLink(theirs), CudaDriver(), "cuda:0")  # made here: a context is a thread's

    thread = threading.Thread(target=run_driver, daemon=True)
    with ours, theirs, ours.makefile("rb") as answers:

        def receive() -> FromDriver:
            (size,) = LENGTH.unpack(answers.read(LENGTH.size))
            return from_driver_decoder.decode(answers.read(size))

        thread.start()
        assert isinstance(receive(), Hello)
        ours.sendall(encode_message(load_message(checkpoint)))
        while not isinstance(message := receive(), Loaded):
            assert isinstance(message, Progress), message
        ours.sendall(b"".join(map(encode_message, kernel.steps)))
        found = [receive() for _ in kernel.steps]
        ours.sendall(encode_message(StopDriver()))
        thread.join()
    assert [without_time(each) for each in found if isinstance(each, StepDone)] == list(
        map(without_time, kernel.answers)
    )


def test_a_batch_that_cannot_be_launched_is_run_by_halves(
    engines: tuple[Engine, Engine, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in flight is answered first; then only the row that fails alone is at fault."""
    two, _, loaded = engines
    assert two._session is not None
    kernel = Kernel(two, loaded)
    for asid in range(3):
        kernel.begin(asid, [3, 1, 4 + asid], 4 if asid == 1 else 0, 3)
    kernel.issue(set(), 64)
    kernel.begin(3, [13, 13], 0, 2)
    model = two._session.model
    embedding = type(model.ops).embedding  # type: ignore[attr-defined]

    def short_of_memory(self: object, token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        if bool((token_ids[:-1] == 13).any() & (token_ids[1:] == 13).any()):
            raise torch.OutOfMemoryError("13 and 13 are too heavy")
        return embedding(self, token_ids, table)  # type: ignore[no-any-return]

    monkeypatch.setattr(type(model.ops), "embedding", short_of_memory)  # type: ignore[attr-defined]
    kernel.issue(set(), 64)
    assert not kernel.in_flight
    assert [(fault.row, fault.message) for fault in kernel.answers[1].faults] == [
        (3, "OutOfMemoryError: 13 and 13 are too heavy")
    ]
    kernel.end(3)
    monkeypatch.undo()
    for _ in range(3):
        kernel.issue(set(), 64)
    kernel.finish()
    assert [len(kernel.processes[asid].tokens) for asid in range(3)] == [8, 8, 8]
    for asid in range(3):
        kernel.end(asid)
    kernel.issue(set(), 64)
    kernel.finish()


def test_a_late_draw_that_cannot_be_launched_loses_nothing(
    engines: tuple[Engine, Engine, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step before was collected by then, and is answered; the step is run once more, without faults."""
    two, one, loaded = engines
    assert two._session is not None
    kernel = Kernel(two, loaded)
    for asid, way in enumerate((0, 4, GRAMMAR_WAY)):
        kernel.begin(asid, [3, 1, 4 + asid], way, 3)
    kernel.issue(set(), 64)
    kind = type(two._session.model.ops)  # type: ignore[attr-defined]
    draw_tokens, num_calls = kind.draw_tokens, 0

    def short_once(*arguments: object) -> object:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            raise torch.OutOfMemoryError("a draw is too heavy")
        return draw_tokens(*arguments)

    monkeypatch.setattr(kind, "draw_tokens", short_once)
    kernel.issue(set(), 64)
    assert (num_calls, len(kernel.answers), len(kernel.in_flight)) == (2, 2, 0)
    for _ in range(3):
        kernel.issue(set(), 64)
    kernel.finish()
    for asid in range(3):
        kernel.end(asid)
    kernel.issue(set(), 64)
    kernel.finish()
    assert not any(answer.faults for answer in kernel.answers)
    expected = [one.run_step(step) for step in kernel.steps]
    assert list(map(without_time, kernel.answers)) == list(map(without_time, expected))
