"""Two steps in flight on triton's operations: the same tokens as one step after the other, to the bit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from enum import Enum

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import example, given, settings
from hypothesis import strategies as st
from model_zoo import Memory, random_model
from stand_in_graph import StandInGraph, record, refuse_reads
from triton_device import DEVICE, IS_INTERPRETED

from drivers.model.launch import DirectLauncher, GraphLauncher
from drivers.model.randomness import uniform
from drivers.model.transformer import Transformer
from llmos.device import Row
from native.sampling import Choice, Cut, Draw, MirostatDraw, Tally, Window

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from drivers.model.decode_buckets import bucket_size
from drivers.model.step_queue import MAX_IN_FLIGHT, StepQueue
from drivers.triton_ops.ops import TritonOps

NUM_SPACES = 4
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
PROMPT = (5, 17, 3)


@functools.cache
def model(dtype: str = "fp32", kv: str | None = None) -> Transformer:
    """One layer is enough: what is tested is around it."""
    ops = TritonOps(use_library=False)
    made = random_model(dtype, num_layers=1, vocab_size=41, kv=kv, ops=ops, device=DEVICE, **SIZES)
    assert isinstance(made, Transformer)
    return made


class RecordingLauncher(DirectLauncher):
    """Notes keys, and refuses a fence out of order."""

    def __init__(self) -> None:
        super().__init__(DEVICE)
        self.keys: list[Hashable] = []

    def run(self, key: Hashable, work: Callable[[], None], places: Sequence[torch.Tensor]) -> None:
        """See Launcher."""
        self.keys.append(key)
        super().run(key, work, places)


def open_queue(launcher: DirectLauncher | None = None, *numbers: str) -> tuple[StepQueue, Memory]:
    """A queue on pages of its own, of a model in some number formats."""
    memory = Memory(model(*numbers), NUM_SPACES, seed=None)
    made = launcher or (DirectLauncher(DEVICE) if IS_INTERPRETED else GraphLauncher(DEVICE))
    return StepQueue(model(*numbers), memory.pages, NUM_SPACES, made), memory


class Way(Enum):
    """How a space draws."""

    PLAIN = "by seed and position"
    TOLD = "log-probabilities are told"
    LATE = "never the token before"
    COUNTED = "penalties for all tokens before"
    WINDOW = "penalties for the last two"
    MIROSTAT = "by what surprised before"


OWNERS = [object() for _ in range(NUM_SPACES)]


def draw_at(
    space: int, position: int, way: Way, known: Sequence[int], mu: float | None = None
) -> Draw | None:
    """Greedy for the first space if it is plain, random else; what is known may lack the last token."""
    mu = 4.0 if mu is None else mu
    if space == 0 and way is Way.PLAIN:
        return None
    draw = Draw(0.8, uniform(space, position), top_k=20)
    last = known[-1]
    match way:
        case Way.COUNTED | Way.WINDOW:
            num_prompt = len(PROMPT[space % 2 :])
            begin = max(0, len(known) - 2) if way is Way.WINDOW else 0
            ids, places = np.unique(known[begin:], return_inverse=True)
            counts = np.bincount(places[max(0, num_prompt - begin) :], minlength=len(ids))
            tokens = np.array(known[begin:], dtype=np.int32)
            window = Window(2, num_prompt, tokens) if way is Way.WINDOW else None
            tally = Tally(OWNERS[space], len(known), position, True, window)
            num_top = 1 if space == 1 else None
            return evolve(
                draw, seen_ids=ids, num_output=counts, repetition_penalty=1.5, frequency_penalty=0.8,
                tally=tally, num_top=num_top,
            )  # fmt: skip
        case Way.TOLD:
            return evolve(draw, num_top=2)
        case Way.LATE:
            return evolve(draw, banned_ids=np.array([last]), num_top=1 if space == 1 else None)
        case Way.MIROSTAT:
            tally = Tally(OWNERS[space], len(known), position, True)
            version = 1 + space % 2
            return evolve(
                draw, cuts=(Cut("temperature", 0.8),), mirostat=MirostatDraw(version, 2.0, 0.3, mu, tally),
                num_top=(None, 1, 3, 3)[space], is_processed=space > 1,
            )  # fmt: skip
    return draw


@functools.cache
def quiet_run(space: int, way: Way, num_tokens: int, *numbers: str) -> list[Choice]:
    """Tokens of a space that runs alone, each step waited for."""
    memory = Memory(model(*numbers), NUM_SPACES, seed=None)
    tokens = list(PROMPT[space % 2 :])
    start = 0
    choices = []
    for _ in range(num_tokens):
        row = Row(space, start, tuple(tokens[start:]), True)
        draws = [draw_at(space, len(tokens), way, tokens, choices[-1].mu if choices else None)]
        choices += memory.model.choose([row], memory.pages, draws)
        start = len(tokens)
        tokens.append(choices[-1].token)
    return choices


@settings(max_examples=1)
@given(
    ways=st.lists(st.sampled_from(Way), min_size=NUM_SPACES, max_size=NUM_SPACES),
    begins=st.lists(st.integers(0, 2), min_size=NUM_SPACES, max_size=NUM_SPACES),
    depth=st.integers(1, MAX_IN_FLIGHT),
    is_replayed=st.booleans(),
)
@example(ways=[Way.PLAIN] * NUM_SPACES, begins=[0, 0, 0, 0], depth=2, is_replayed=False)
@example(
    ways=[Way.MIROSTAT, Way.MIROSTAT, Way.TOLD, Way.MIROSTAT], begins=[0, 0, 1, 0], depth=2, is_replayed=False
)
@example(
    ways=[Way.COUNTED, Way.COUNTED, Way.PLAIN, Way.LATE], begins=[0, 0, 0, 1], depth=2, is_replayed=False
)
@example(
    ways=[Way.COUNTED, Way.WINDOW, Way.WINDOW, Way.COUNTED], begins=[0, 0, 1, 2], depth=2, is_replayed=False
)
@example(
    ways=[Way.COUNTED, Way.PLAIN, Way.WINDOW, Way.COUNTED], begins=[0, 0, 0, 0], depth=2, is_replayed=True
)
@example(ways=[Way.LATE, Way.LATE, Way.PLAIN, Way.TOLD], begins=[0, 0, 0, 1], depth=2, is_replayed=True)
def test_choices_are_those_of_quiet_runs(
    ways: list[Way], begins: list[int], depth: int, is_replayed: bool
) -> None:
    """Spaces join a batch at any step and draw in any way: each gets the tokens that it gets alone."""
    queue, _ = open_queue(GraphLauncher(DEVICE, record if IS_INTERPRETED else None) if is_replayed else None)
    lengths: dict[int, int] = {}  # positions launched
    choices: dict[int, list[Choice]] = {space: [] for space in range(NUM_SPACES)}
    launched: list[list[int]] = []

    def collect() -> None:
        for space, choice in zip(launched.pop(0), queue.collect(), strict=True):
            choices[space].append(choice)

    def draw(rows: list[Row]) -> list[Draw | None]:
        draws = []
        for space in (row.asid for row in rows):
            known = [*PROMPT[space % 2 :], *(choice.token for choice in choices[space])]
            mu = choices[space][-1].mu if choices[space] else None
            draws.append(draw_at(space, lengths[space], ways[space], known, mu))
        return draws

    for step in range(3):
        rows = []
        for space in range(NUM_SPACES):
            if step < begins[space]:
                continue
            prompt = PROMPT[space % 2 :] if step == begins[space] else ()
            start = lengths.get(space, 0)
            rows.append(Row(space, start, prompt, True))
            lengths[space] = start + max(1, len(prompt))
        if not rows:
            continue
        while len(launched) >= depth:
            collect()
        num_before = len(launched)

        def draw_late(rows: list[Row] = rows) -> list[Draw | None]:
            while launched:
                collect()
            return draw(rows)

        is_late = any(ways[row.asid] is Way.LATE for row in rows)
        queue.launch(rows, draw_late if is_late else draw(rows))
        assert len(launched) == (0 if is_late else num_before)
        launched.append([row.asid for row in rows])
        assert queue.num_in_flight == len(launched)
    while launched:
        collect()
    for space, found in choices.items():
        assert found == quiet_run(space, ways[space], 3)[: len(found)]


def test_sizes_and_order() -> None:
    """Batches are padded to buckets, contexts and rows with penalties to powers of two; a key for each."""
    assert [bucket_size(n) for n in (1, 2, 3, 5, 16, 17, 33, 250)] == [1, 2, 4, 8, 16, 32, 48, 256]
    launcher = RecordingLauncher()
    queue, _ = open_queue(launcher)
    for count in (1, 3, 2):
        queue.launch([Row(space, 0, (1,), True) for space in range(count)], [None] * count)
        assert len(queue.collect()) == count
    assert launcher.keys == [(1, 1), (4, 1), (2, 1)]
    queue.launch([Row(0, 1, (2, 3), True)], [None])  # a chunk is launched as it is
    queue.collect()
    assert len(launcher.keys) == 3
    for count in (1, 3):
        counted = [draw_at(space, 1, Way.COUNTED, (1,)) for space in (0, 2, 3)[:count]]
        rows = [Row(space, 0, (1,), True) for space in (0, 2, 3)[:count]]
        queue.launch([*rows, Row(1, 0, (1,), True)], [*counted, None])
        queue.collect()
    assert launcher.keys[3:] == [(2, 1, 1), (4, 1, 4)]
    told = draw_at(1, 1, Way.COUNTED, (1,))  # with log-probabilities
    queue.launch([Row(1, 0, (1,), True)], [told])
    queue.collect()
    assert launcher.keys[5:] == [(1, 1, "forward")]


def test_two_steps_are_in_flight_at_most() -> None:
    """A third one is refused, and so is collecting one that is not there."""
    queue, _ = open_queue()
    for start in range(2):
        assert not queue.is_full
        queue.launch([Row(0, start, (1,), True)], [None])
    assert queue.is_full
    with pytest.raises(RuntimeError, match="2 steps are in flight"):
        queue.launch([Row(0, 2, (1,), True)], [None])
    assert len(queue.collect()) == 1
    assert not queue.is_full
    queue.collect()
    with pytest.raises(RuntimeError, match="no step is in flight"):
        queue.collect()


def test_a_launch_waits_for_nothing() -> None:
    """Prompts, steps that are fed, late draws, counts, mirostat, what is told: the host reads nothing."""
    queue, _ = open_queue(DirectLauncher(DEVICE))  # the calls that a graph would record
    ways = (Way.COUNTED, Way.WINDOW, Way.MIROSTAT, Way.LATE)
    tokens = [list(PROMPT[space % 2 :]) for space in range(len(ways))]
    mus: list[float | None] = [None] * len(ways)

    def draw(num_ahead: int) -> list[Draw | None]:
        return [
            draw_at(space, len(tokens[space]) + num_ahead, way, tokens[space], mus[space])
            for space, way in enumerate(ways)
        ]

    prompts = [Row(space, 0, tuple(known), True) for space, known in enumerate(tokens)]
    with refuse_reads():
        queue.launch(prompts, draw(0))
        fed = [Row(space, len(known), (), True) for space, known in enumerate(tokens)]
        queue.launch(fed, draw(1))
        with pytest.raises(RuntimeError, match=r"wait|synchronizing"):
            int(queue._last[0])
    for _ in range(2):
        for space, choice in enumerate(queue.collect()):
            tokens[space].append(choice.token)
            mus[space] = choice.mu
    fed = [Row(space, len(known) - 1, (known[-1],), True) for space, known in enumerate(tokens)]
    with refuse_reads():
        queue.launch(fed, lambda: draw(0))
    queue.collect()


def test_broken_rows_are_told_and_targets_are_scored() -> None:
    """NaN in one space's keys is that row's fault alone; targets give likelihoods in the order of rows."""
    queue, memory = open_queue()
    queue.launch([Row(0, 0, (1, 2), True), Row(1, 0, (1, 2), True)], [None, None])
    queue.collect()
    memory.pages.layers[0].values[memory.page_index(1, 0), 0] = torch.nan
    queue.launch([Row(0, 2, (), True), Row(1, 2, (), True)], [None, None])
    good, bad = queue.collect()
    assert good.num_bad == 0
    assert bad == Choice(-1, 41)
    row = Row(2, 0, (1, 2, 3), True, targets=(2, 3))
    queue.launch([row], [Draw(given=2, num_top=0), Draw(given=3, num_top=0), None])
    scored = queue.collect()
    assert [choice.token for choice in scored[:2]] == [2, 3]
    assert all(choice.logprob < 0 and choice.rank >= 1 for choice in scored[:2])


@pytest.mark.parametrize("numbers", [("fp32",), ("fp32", "int8"), ("w8a8",), ("w4a8", "int8")])
def test_replayed_steps_emit_what_called_ones_do(numbers: tuple[str, ...]) -> None:
    """Batches of changing size, padded, fed by the device and by the host, as graphs: the quiet tokens."""
    launcher = GraphLauncher(DEVICE, record if IS_INTERPRETED else None)
    queue, _ = open_queue(launcher, *numbers)
    batches = [(0, 1, 2), (0, 1, 2), (0, 1, 2, 3), (2,), (1, 3, 0), (3, 1)]
    if numbers != ("fp32",):
        batches = [(0, 1), (1,), (0, 1)]
    spaces = sorted({space for batch in batches for space in batch})
    tokens: dict[int, list[int]] = {space: [] for space in spaces}
    for space in spaces:
        queue.launch(
            [Row(space, 0, PROMPT[space % 2 :], True)],
            [draw_at(space, len(PROMPT[space % 2 :]), Way.PLAIN, PROMPT)],
        )
        tokens[space] += [choice.token for choice in queue.collect()]
    launched: list[tuple[int, ...]] = []
    lengths = {space: len(PROMPT[space % 2 :]) for space in spaces}
    for number, batch in enumerate(batches):
        while len(launched) == MAX_IN_FLIGHT:
            for space, choice in zip(launched.pop(0), queue.collect(), strict=True):
                tokens[space].append(choice.token)
        rows = []
        for space in batch:
            is_known = number % 2 and lengths[space] < len(PROMPT[space % 2 :]) + len(tokens[space])
            given = (tokens[space][-1],) if is_known else ()
            rows.append(Row(space, lengths[space], given, True))
            lengths[space] += 1
        queue.launch(rows, [draw_at(space, lengths[space], Way.PLAIN, PROMPT) for space in batch])
        launched.append(batch)
    while launched:
        for space, choice in zip(launched.pop(0), queue.collect(), strict=True):
            tokens[space].append(choice.token)
    for space, found in tokens.items():
        quiet = quiet_run(space, Way.PLAIN, 6 if numbers == ("fp32",) else 4, *numbers)
        assert found == [choice.token for choice in quiet][: len(found)]
    assert launcher.num_recorded == len({bucket_size(len(batch)) for batch in batches})


@pytest.mark.skipif(not IS_INTERPRETED, reason="graphs are recorded on a stand-in")
def test_a_graph_is_recorded_anew_when_its_memory_has_moved() -> None:
    """One for each key; a replay takes what lies in memory by then; one that is elsewhere is not replayed."""
    graphs: list[StandInGraph] = []

    def recording(work: Callable[[], None]) -> StandInGraph:
        graphs.append(record(work))
        return graphs[-1]

    launcher = GraphLauncher(DEVICE, recording)
    given, total = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    num_calls = 0

    def work() -> None:
        nonlocal num_calls
        num_calls += 1
        total.add_(torch.where(given > 1, 2 * given, given)[:3])

    with torch.inference_mode():
        for value in range(4):
            given.fill_(value)
            launcher.run("three", work, (given, total))
    assert total.tolist() == [0 + 1 + 4 + 6] * 3
    assert (num_calls, len(graphs), graphs[0].num_replays) == (2, 1, 3)
    launcher.run("other", work, (given, total))
    assert launcher.num_recorded == len(graphs) == 2
    given = torch.full((3,), 5, dtype=torch.int64)
    launcher.run("three", work, (given, total))
    launcher.run("three", work, (given, total))
    assert total.tolist() == [11 + 6 + 10 + 10] * 3
    assert (launcher.num_recorded, len(graphs), graphs[0].num_replays, graphs[2].num_replays) == (2, 3, 3, 1)

    def reading() -> None:
        if int(total[0]):
            total.zero_()

    with pytest.raises(RuntimeError, match="the host reads what the device computes"):
        launcher.run("reading", reading, (total,))
