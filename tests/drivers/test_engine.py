"""The engine on both arenas: any arrangement of pages gives the model's own tokens; failures stay small.

The CUDA driver runs on a stand-in for its library: frames are main memory, and torch is on the processor.
"""

from __future__ import annotations

import functools
import re
import select
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_zoo import Memory, load_model, save_checkpoint

from drivers import device_copies
from drivers.backend import Backend
from drivers.cpu import CpuDriver
from drivers.cuda import CudaDriver
from drivers.engine import Engine
from drivers.model.launch import DirectLauncher
from drivers.model.loader import ProgressCallback, load_reference, open_model
from drivers.model.transformer import Model
from drivers.ops.reference import ReferenceOps
from llmos.device import (
    Bind,
    Copy,
    CopyDone,
    CopyPage,
    Edit,
    Failed,
    Load,
    Loaded,
    Map,
    Place,
    Release,
    Reserve,
    Row,
    Sampling,
    Step,
    StepDone,
)  # fmt: skip
from native.cuda.device import CudaFault
from tests.fake_cuda import ILLEGAL_ADDRESS, OUT_OF_MEMORY, FakeCuda, load_fake

PROMPT = tuple((7 * i + 3) % 131 for i in range(45))
GREEDY = Sampling()
FRAME_BYTES = 1 << 13


class FailingOps(ReferenceOps):
    """Runs out of memory whenever token 13 is in a batch."""

    def embedding(self, token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        if bool((token_ids == 13).any()):
            raise MemoryError("token 13 is too heavy")
        return super().embedding(token_ids, table)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """The library that a CUDA driver opens; nothing of it is left in the end."""
    fake = load_fake()
    fake.reset()
    fake.set_granule(FRAME_BYTES)
    monkeypatch.setenv("LLMOS_LIBCUDA", fake.library)
    yield fake
    fake.reset()


@pytest.fixture(params=["cpu", "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each kind of driver."""
    if request.param == "cpu":
        yield CpuDriver(1)
        return
    fake: FakeCuda = request.getfixturevalue("stand_in")
    backend = CudaDriver()
    yield backend
    backend.close()
    assert not any(fake.count_live())
    assert fake.count().unpinned == 0


class FailingCpuDriver(CpuDriver):
    """The processor, short of memory."""

    def load_model(self, load: Load, report: ProgressCallback) -> tuple[Model, None]:
        return load_reference(open_model(load.path), load, torch.device("cpu"), ops=FailingOps()), None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama whose embedding of token 99 is NaN."""
    folder = tmp_path_factory.mktemp("llama")
    save_checkpoint(folder, "LlamaForCausalLM")
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][99] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def load_engine(backend: Backend, checkpoint: Path) -> tuple[Engine, Loaded]:
    """An engine in debug mode with the checkpoint loaded."""
    engine = Engine(backend, debug=True)
    loaded = engine.load(
        Load(str(checkpoint), "tiny", "fp32", "auto", 1 << 19, FRAME_BYTES, 4, 128, 64),
        lambda *progress: None,
    )
    assert isinstance(loaded, Loaded)
    return engine, loaded


def step(engine: Engine, edits: tuple[Edit, ...], *rows: Row) -> StepDone:
    """Run one step."""
    return engine.run_step(Step(1, edits, rows))


def test_pages_may_be_shared_copied_and_scattered(backend: Backend, checkpoint: Path) -> None:
    """Prefix sharing, fork with copy-on-write and reuse of frames: every process emits the model's tokens."""
    engine, loaded = load_engine(backend, checkpoint)
    size = loaded.kv.tokens_per_page
    assert len(PROMPT) // size == 2
    assert len(PROMPT) % size  # two full pages and a part
    alone = Memory(load_model(checkpoint, max_model_len=128))
    expected = alone.generate(PROMPT, 12)[0]
    other = (*PROMPT[: 2 * size], 1, 2, 3)
    expected_other = alone.generate(other, 6)[0]

    def bind(asid: int, tokens: tuple[int, ...]) -> Bind:
        return Bind(asid, GREEDY, tokens, len(PROMPT))

    emitted: dict[int, list[int | None]] = {}
    edits = (Reserve(0), Map(0, 0, (63, 5)), Map(0, 1, (8, 62)), Map(0, 2, (30, 7)), bind(0, PROMPT))
    emitted[0] = list(step(engine, (*edits, Map(0, 3, (50, 51))), Row(0, 0, PROMPT, True)).tokens)
    # a process that shares the two full pages, and a fork of the first one that copies its tail
    edits = (Reserve(1), Map(1, 0, (63, 5)), Map(1, 1, (8, 62)), Map(1, 2, (1, 0)), bind(1, other))
    edits += (Reserve(2), Map(2, 0, (63, 5)), Map(2, 1, (8, 62)), CopyPage((30, 7), (40, 41)))
    edits += (Map(2, 2, (40, 41)), Map(2, 3, (53, 52)), bind(2, (*PROMPT, expected[0])))
    rows = (Row(0, 45, (), True), Row(1, 2 * size, other[2 * size :], True), Row(2, 45, (expected[0],), True))
    done = step(engine, edits, *rows)
    for asid in (0, 1, 2):
        emitted.setdefault(asid, []).append(done.tokens[asid])
    for i in range(5):
        rows = (Row(2, 46 + i, (), True), Row(1, len(other) + i, (), True), Row(0, 46 + i, (), True))
        done = step(engine, (), *rows)
        for row, token in zip(rows, done.tokens, strict=True):
            emitted[row.asid].append(token)
    assert emitted == {0: expected[:7], 1: expected_other, 2: expected[1:7]}

    # spaces 0 and 2 end; their own frames serve a new process, in other company, beside the shared ones
    edits = (Release(0), Release(2), Reserve(0), Map(0, 0, (63, 5)), Map(0, 1, (8, 62)), Map(0, 2, (41, 30)))
    edits += (Map(0, 3, (51, 52)), bind(0, PROMPT))
    done = step(engine, edits, Row(0, 2 * size, PROMPT[2 * size :], True))
    again = [done.tokens[0]] + [step(engine, (), Row(0, 45 + i, (), True)).tokens[0] for i in range(6)]
    assert again == expected[:7]
    engine.close()


def test_only_the_row_with_bad_logits_faults(checkpoint: Path) -> None:
    """A process whose logits are not finite fails; its neighbour in the batch does not notice."""
    engine, _ = load_engine(CpuDriver(1), checkpoint)
    expected = Memory(load_model(checkpoint, max_model_len=128)).generate(PROMPT, 2)[0]
    edits: tuple[Edit, ...] = ()
    for asid, tokens in ((0, PROMPT), (1, (99,))):
        edits += (Reserve(asid), Bind(asid, GREEDY, tokens, len(tokens)))
        edits += tuple(Map(asid, vpn, (10 * asid + 2 * vpn, 10 * asid + 2 * vpn + 1)) for vpn in range(3))
    done = step(engine, edits, Row(1, 0, (99,), True), Row(0, 0, PROMPT, True))
    assert done.tokens == (None, expected[0])
    assert [fault.row for fault in done.faults] == [0]
    assert "not finite" in done.faults[0].message
    done = step(engine, (), Row(1, 1, (), True), Row(0, 45, (), True))
    assert done.tokens == (None, expected[1])
    engine.close()


def test_after_an_exception_only_the_rows_at_fault_fail(checkpoint: Path) -> None:
    """Memory runs out in a batch: who needs too much alone carries the text, all others have their tokens."""
    engine, _ = load_engine(FailingCpuDriver(1, native=False), checkpoint)
    alone = Memory(load_model(checkpoint, max_model_len=128))
    expected = functools.cache(lambda first: alone.generate((first, 7), 1)[0][0])

    @settings(max_examples=15)
    @given(st.lists(st.sampled_from([13, 5, 6]), min_size=1, max_size=4), st.booleans())
    def check(firsts: list[int], is_seeded: bool) -> None:
        sampling = Sampling(repetition_penalty=1.0001, logprobs=0) if is_seeded else GREEDY
        edits: tuple[Edit, ...] = ()
        for asid, first in enumerate(firsts):
            edits += (
                Reserve(asid),
                Map(asid, 0, (2 * asid, 2 * asid + 1)),
                Bind(asid, sampling, (first, 7), 2),
            )
        done = step(engine, edits, *(Row(asid, 0, (first, 7), True) for asid, first in enumerate(firsts)))
        assert done.tokens == tuple(None if first == 13 else expected(first) for first in firsts)
        assert {fault.row: fault.message for fault in done.faults} == {
            asid: "MemoryError: token 13 is too heavy" for asid, first in enumerate(firsts) if first == 13
        }
        step(engine, tuple(Release(asid) for asid in range(len(firsts))))

    check()
    failed = step(engine, (Reserve(0), Map(0, 0, (0, 1)), CopyPage((0, 1), (1, 2))), Row(0, 0, (5,), True))
    assert "CopyPage" in failed.faults[0].message
    engine.close()
    with pytest.raises(RuntimeError, match="before a model was loaded"):
        step(engine, ())


def test_a_missing_gpu_is_refused_by_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is not there can be described, and says at the load why it cannot serve."""
    monkeypatch.setenv("LLMOS_LIBCUDA", "libnothing.so.1")
    backend = CudaDriver(97)
    assert backend.memory_bytes == 0
    assert re.match(r"cuda:97 is not there: there is no CUDA driver: .*libnothing\.so\.1", backend.describe())
    answer = Engine(backend).load(
        Load(str(checkpoint), "tiny", "auto", "auto", None, None, 4, 128, 64), lambda *progress: None
    )
    assert isinstance(answer, Failed)
    assert answer.message == backend.describe()
    backend.close()


def test_a_load_that_fails_late_leaves_nothing_open(
    backend: Backend, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and tiers are set up when the last part fails: all of it is given back."""

    def fail(*_: object) -> None:
        raise MemoryError("no room for a queue")

    def find_open() -> set[tuple[str, str]]:
        """Descriptors without a name: frames, the swap file, events. Libraries open others at first use."""
        links = {
            (entry.name, str(entry.readlink()))
            for entry in Path("/proc/self/fd").iterdir()
            if entry.is_symlink()
        }
        return {(fd, to) for fd, to in links if "memfd:" in to or "deleted" in to or "eventfd" in to}

    before = find_open()
    monkeypatch.setattr(type(backend), "open_queue", fail)
    load = Load(str(checkpoint), "tiny", "fp32", "auto", 1 << 19, FRAME_BYTES, 4, 128, 64)
    load = msgspec.structs.replace(load, host_bytes=1 << 18, disk_bytes=1 << 18)
    failed = Engine(backend).load(load, lambda *progress: None)
    assert isinstance(failed, Failed)
    assert "no room for a queue" in failed.message
    assert find_open() == before


def test_a_stand_in_says_what_it_is(stand_in: FakeCuda) -> None:
    """Nobody takes it for a GPU; one more device than there are is not there."""
    backend = CudaDriver()
    assert backend.describe() == "stand-in for a CUDA driver, without a GPU: torch computes on the processor"
    assert backend.torch_device == torch.device("cpu")
    assert CudaDriver(1).describe() == "cuda:1 is not there: cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"
    backend.close()


def test_frames_are_what_the_device_maps(stand_in: FakeCuda, checkpoint: Path) -> None:
    """Rounded up where the size is free; a size that was asked for is refused with both numbers."""
    stand_in.set_granule(1 << 17)
    backend = CudaDriver()
    load = Load(str(checkpoint), "tiny", "fp32", "auto", None, None, 4, 128, 64)
    loaded = Engine(backend).load(load, lambda *progress: None)
    assert isinstance(loaded, Loaded)
    assert (loaded.kv.frame_bytes, loaded.kv.tokens_per_page) == (1 << 17, 336)
    refused = Engine(backend).load(msgspec.structs.replace(load, frame_bytes=1 << 16), print)
    assert isinstance(refused, Failed)
    assert "frame of 65536 bytes is not a multiple of the 131072 bytes" in refused.message
    stand_in.set_memory(1 << 20)
    refused = Engine(backend).load(msgspec.structs.replace(load, pool_bytes=1 << 24), print)
    assert isinstance(refused, Failed)
    assert "cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY" in refused.message


def test_a_map_that_the_driver_refuses_fails_one_process(stand_in: FakeCuda, checkpoint: Path) -> None:
    """Its row is at fault by the call's name until its space is gone; the others go on."""
    engine, _ = load_engine(CudaDriver(), checkpoint)
    expected = Memory(load_model(checkpoint, max_model_len=128)).generate(PROMPT, 2)[0]

    def begin(asid: int) -> tuple[Edit, ...]:
        maps = tuple(Map(asid, vpn, (10 * asid + 2 * vpn, 10 * asid + 2 * vpn + 1)) for vpn in range(3))
        return (Reserve(asid), *maps, Bind(asid, GREEDY, PROMPT, len(PROMPT)))

    stand_in.fail("cuMemMap", OUT_OF_MEMORY, after=2)
    rows = [Row(asid, 0, PROMPT, True) for asid in range(2)]
    done = step(engine, begin(0) + begin(1), *rows)
    assert done.tokens == (None, expected[0])
    assert [fault.message for fault in done.faults] == ["Map: cuMemMap: CUDA_ERROR_OUT_OF_MEMORY"]
    done = step(engine, (Release(0), *begin(0)), rows[0], Row(1, 45, (), True))
    assert done.tokens == (expected[0], expected[1])
    engine.close()


@pytest.mark.parametrize("call", ["cuMemMap", "cuEventSynchronize", "cuMemcpyDtoDAsync_v2", "cuEventRecord"])
def test_a_device_that_is_beyond_use_ends_the_driver(stand_in: FakeCuda, checkpoint: Path, call: str) -> None:
    """Whichever call says so, in an edit or behind a step: no answer is sent, the process has to end."""
    engine, _ = load_engine(CudaDriver(), checkpoint)
    edits = (Reserve(0), Map(0, 0, (0, 1)), Bind(0, GREEDY, (5,), 1))
    assert step(engine, edits, Row(0, 0, (5,), True)).faults == ()
    stand_in.fail(call, ILLEGAL_ADDRESS)
    with pytest.raises(CudaFault, match=f"^{call}: CUDA_ERROR_ILLEGAL_ADDRESS$"):
        step(engine, (CopyPage((0, 1), (2, 3)), Map(0, 0, (2, 3))), Row(0, 1, (), True))


def test_what_found_the_device_beyond_use_is_what_is_raised(
    stand_in: FakeCuda, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel's launch fails first, and then every call of the driver: the launch is told, as it was."""
    engine, _ = load_engine(CudaDriver(), checkpoint)
    assert engine._session is not None

    def fail(*arguments: object) -> None:
        stand_in.fail("cuCtxSynchronize", ILLEGAL_ADDRESS)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(type(engine._session.model.ops), "embedding", fail)  # type: ignore[attr-defined]
    edits = (Reserve(0), Map(0, 0, (0, 1)), Bind(0, GREEDY, (5,), 1))
    with pytest.raises(RuntimeError, match="an illegal memory access was encountered") as raised:
        step(engine, edits, Row(0, 0, (5,), True))
    assert "cuCtxSynchronize" in str(raised.value.__cause__)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_serves(checkpoint: Path) -> None:
    """The same steps on a real GPU give finite logits, tokens in the vocabulary, and the same ones twice."""
    engine = Engine(CudaDriver(0), debug=True)
    answer = engine.load(
        Load(str(checkpoint), "tiny", "fp32", "auto", None, None, 4, 128, 64), lambda *progress: None
    )
    assert isinstance(answer, Loaded)
    tokens: list[list[int | None]] = []
    for asid in (0, 1):
        edits: tuple[Edit, ...] = (Reserve(asid), Bind(asid, GREEDY, PROMPT, 45))
        edits += tuple(
            Map(asid, vpn, (4 * vpn + 2 * asid, 4 * vpn + 2 * asid + 1))
            for vpn in range(answer.kv.num_pages(60))
        )
        done = step(engine, edits, Row(asid, 0, PROMPT[: 20 + asid], False))
        assert done.faults == ()
        tokens.append(list(step(engine, (), Row(asid, 20 + asid, PROMPT[20 + asid :], True)).tokens))
        tokens[-1] += [step(engine, (), Row(asid, 45 + i, (), True)).tokens[0] for i in range(6)]
    assert None not in tokens[0]
    assert tokens[0] == tokens[1]
    engine.close()


def test_a_process_that_was_swapped_out_and_in_goes_on(backend: Backend, checkpoint: Path) -> None:
    """Its pages leave while others run, come back to other frames, and its tokens are the model's."""
    engine = Engine(backend, debug=True)
    load = Load(
        str(checkpoint), "tiny", "fp32", "auto", 1 << 19, FRAME_BYTES, 4, 128, 64, host_bytes=1 << 17,
        disk_bytes=1 << 16,
    )  # fmt: skip
    loaded = engine.load(load, lambda *progress: None)
    assert isinstance(loaded, Loaded)
    assert (loaded.num_host_slots, loaded.num_disk_slots) == (16, 8)
    expected = Memory(load_model(checkpoint, max_model_len=128)).generate(PROMPT, 9)[0]

    def begin(asid: int, first: int, *tokens: int) -> tuple[Edit, ...]:
        maps = tuple(Map(asid, vpn, (first + vpn, first + 20 + vpn)) for vpn in range(4))
        return (Reserve(asid), *maps, Bind(asid, GREEDY, (*PROMPT, *tokens), len(PROMPT)))

    tokens = list(step(engine, begin(0, 0), Row(0, 0, PROMPT, True)).tokens)
    tokens += [step(engine, (), Row(0, 45 + i, (), True)).tokens[0] for i in range(3)]
    frames = (0, 1, 2, 3, 20, 21, 22, 23)
    assert engine.begin_copy(Copy(1, Place("device", frames), Place("host", tuple(range(8, 16))))) is None
    other = step(engine, (Release(0), *begin(1, 4)), Row(1, 0, PROMPT, True))  # while they leave
    assert other.tokens == (expected[0],)
    assert [(done.id, done.faults) for done in engine.finish()] == [(1, ())]
    step(engine, (*begin(2, 0), Release(1)), Row(2, 0, (1, 2, 3) * 20, True))  # others write to its frames
    assert (
        engine.begin_copy(Copy(2, Place("host", tuple(range(8, 16))), Place("disk", tuple(range(8))))) is None
    )
    (out,) = engine.finish()
    assert not out.faults
    back = (40, 41, 42, 43, 60, 61, 62, 63)
    engine.begin_copy(Copy(3, Place("disk", tuple(range(8))), Place("device", back), out.checksums))
    step(engine, (), Row(2, 60, (4,), True))
    assert [(done.id, done.faults) for done in engine.finish()] == [(3, ())]
    assert not engine.is_busy
    again = step(engine, begin(3, 40, *expected[:4]), Row(3, 48, (expected[3],), True))
    tokens += again.tokens
    tokens += [step(engine, (), Row(3, 49 + i, (), True)).tokens[0] for i in range(4)]
    assert tokens == expected
    engine.close()


def test_copies_without_a_model_and_across_loads(checkpoint: Path) -> None:
    """Without a model every slot is at fault; a load drops what the tiers held; a bad folder refuses it."""
    engine = Engine(CpuDriver(1), debug=True)
    copy = Copy(5, Place("host", (0, 1)), Place("device", (0, 1)))
    done = engine.begin_copy(copy)
    assert done is not None
    assert [(fault.index, fault.message) for fault in done.faults] == [
        (0, "there is no model, and so no memory"), (1, "there is no model, and so no memory")
    ]  # fmt: skip
    assert engine.collect() == engine.finish() == []
    load = Load(str(checkpoint), "tiny", "fp32", "auto", 1 << 19, FRAME_BYTES, 4, 128, 64, host_bytes=1 << 14)
    assert isinstance(engine.load(load, lambda *progress: None), Loaded)
    assert engine.begin_copy(copy) is None
    loaded = engine.load(msgspec.structs.replace(load, host_bytes=0), lambda *progress: None)
    assert isinstance(loaded, Loaded)
    assert loaded.num_host_slots == 0
    assert not engine.is_busy
    assert engine.begin_copy(copy) is not None
    refused = engine.load(msgspec.structs.replace(load, disk_bytes=1 << 20, disk_folder="/nowhere"), print)
    assert isinstance(refused, Failed)
    assert "/nowhere" in refused.message


def test_a_step_tells_what_was_mapped_for_it(backend: Backend, checkpoint: Path) -> None:
    """Pages that it waited for, those mapped beside it when a row comes to need them, and nothing twice."""
    engine, loaded = load_engine(backend, checkpoint)
    size = loaded.kv.tokens_per_page
    prompt = PROMPT[:size]
    maps = step(
        engine,
        (Reserve(0), Map(0, 0, (3, 5)), Map(0, 1, (8, 2), is_ahead=True), Bind(0, GREEDY, prompt, size)),
        Row(0, 0, prompt, True),
    ).maps
    assert maps is not None
    assert (maps.num_sync, maps.num_ahead, maps.beside_seconds) == (1, 1, 0.0)
    assert maps.wait_seconds > 0
    maps = step(engine, (), Row(0, size, (), True)).maps
    assert maps is not None
    assert (maps.num_sync, maps.num_ahead) == (0, 0)
    assert maps.beside_seconds > 0
    assert step(engine, (), Row(0, size + 1, (), True)).maps is None
    engine.close()


def test_copies_to_files_go_on_while_nothing_else_happens(
    backend: Backend, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More pieces than buffers, two stages each: an idle driver is woken for every one of them."""
    monkeypatch.setattr(device_copies, "BUFFER_BYTES", FRAME_BYTES)
    engine = Engine(backend, debug=True)
    load = Load(str(checkpoint), "tiny", "fp32", "auto", 1 << 19, FRAME_BYTES, 4, 128, 64, disk_bytes=1 << 18)
    assert isinstance(engine.load(load, lambda *progress: None), Loaded)
    frames, checksums = tuple(range(16)), ()
    for copy_id, (source, target) in enumerate((("device", "disk"), ("disk", "device"))):
        copy = Copy(copy_id, Place(source, frames), Place(target, frames), checksums)
        assert engine.begin_copy(copy) is None
        done = collect_one(engine)
        assert isinstance(done, CopyDone)
        assert not done.faults
        checksums = done.checksums
    assert not engine.is_busy
    engine.close()


def collect_one(engine: Engine) -> object:
    """What ends next, as a driver's loop finds it: nothing is looked at unless a descriptor tells."""
    while True:
        descriptors, _ = engine.wait_for()
        assert select.select(descriptors, [], [], 60.0)[0], "nobody wakes the driver"
        if answers := engine.collect():
            (answer,) = answers
            return answer


class _HeldFence:
    """A device that is at a step for as long as a test wants."""

    def __init__(self) -> None:
        self.is_over = threading.Event()

    def synchronize(self) -> None:
        """See Fence."""
        assert self.is_over.wait(60.0)


def test_copies_to_files_go_on_while_the_device_is_at_a_step(
    stand_in: FakeCuda, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pieces, whatever buffers hold, both ways: no stage of a copy waits for the end of a step."""
    monkeypatch.setattr(device_copies, "BUFFER_BYTES", FRAME_BYTES)
    backend = CudaDriver()
    engine = Engine(backend)
    load = Load(str(checkpoint), "tiny", "fp32", "auto", 1 << 19, FRAME_BYTES, 4, 128, 64, disk_bytes=1 << 18)
    loaded = engine.load(load, lambda *progress: None)
    assert isinstance(loaded, Loaded)
    fence = _HeldFence()
    monkeypatch.setattr(DirectLauncher, "mark", lambda launcher: fence)
    maps = tuple(Map(0, vpn, (2 * vpn, 2 * vpn + 1)) for vpn in range(loaded.kv.num_pages(len(PROMPT))))
    edits = (Reserve(0), *maps, Bind(0, GREEDY, PROMPT, len(PROMPT)))
    assert engine.begin_step(Step(1, edits, (Row(0, 0, PROMPT, True),))) == []
    device, disk, checksums = Place("device", tuple(range(32, 48))), Place("disk", tuple(range(16))), ()
    for copy_id, (source, target) in enumerate(((device, disk), (disk, device))):
        assert engine.begin_copy(Copy(copy_id, source, target, checksums)) is None
        done = collect_one(engine)
        assert isinstance(done, CopyDone)
        assert not done.faults
        checksums = done.checksums
    assert engine.wants_step  # it is still at the step
    fence.is_over.set()
    assert isinstance(collect_one(engine), StepDone)
    assert not engine.is_busy
    engine.close()
    backend.close()
