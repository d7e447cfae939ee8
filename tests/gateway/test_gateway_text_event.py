"""Events that are joined from ready pieces: byte for byte what encoding their objects gives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shell.gateway.answer import Shape
from shell.gateway.catalog import ServedModel
from shell.gateway.chat_shape import ChatShape
from shell.gateway.choice import Choice, Delta
from shell.gateway.completions import CompletionShape
from shell.gateway.job import Job
from shell.gateway.parsers.events import Content, Reasoning
from shell.gateway.reader import PLAIN_TEXT, MessageReader
from shell.gateway.sse import encode_event
from syscalls.process import ExitStatus, Output
from syscalls.sampling import Sampling
from syscalls.system import Model
from syscalls.text.stop import StopMatcher
from syscalls.text.tokenizer import TextModel
from tests.scripted_kernel import END, write_model_folder

PATIENT = settings(max_examples=100)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A model whose tokens are bytes; its name needs escapes in JSON."""
    folder = write_model_folder(tmp_path_factory.mktemp("model"))
    name = 'a "model", 日本'
    info = Model(name, str(folder), 512, 259, (END,), "f32", "00", 1, 0)
    return ServedModel(name=name, info=info, text=TextModel.open(folder), sampling_defaults={})


def make_job(model: ServedModel, *, ids: bool, times: bool, usage: bool) -> Job:
    """A streamed job of one prompt."""
    return Job(
        model=model, prompts=((1, 2),), spawn={"sampling": Sampling()}, num_samples=2, num_choices=2,
        stops=(), include_stop=False, skip_special_tokens=True, reading=PLAIN_TEXT, num_top_logprobs=None,
        num_prompt_logprobs=None, tokens_as_ids=False, return_token_ids=ids, return_token_times=times,
        max_predict_seconds=None, has_timings=False, has_progress=False, stream=True, include_usage=usage,
        continuous_usage=False,
    )  # fmt: skip


def open_choice(model: ServedModel, index: int) -> Choice:
    """A choice whose text is told as it comes."""
    decoder = model.text.decoder(continues=True)
    return Choice(index=index, pid=1, decoder=decoder, reader=MessageReader(StopMatcher([])))


def make_shape(kind: str, job: Job) -> Shape:
    """A shape that has told nothing."""
    if kind == "chat":
        return ChatShape(job=job, reasoning_fields=("reasoning",), id="chatcmpl-1", created=7)
    return CompletionShape(job, id="cmpl-1", created=7)


def encode_chunks(shape: Shape, choice: Choice, delta: Delta, *, usage: bool) -> bytes:
    """The plain way, which is the reference."""
    chunks = shape.chunks(choice, delta)
    if usage:
        chunks = [{**chunk, "usage": None} for chunk in chunks]
    return b"".join(map(encode_event, chunks))


texts = st.text(max_size=12) | st.sampled_from(["\x00text", '"', "\\", "\u2028", "data: \n\n", "é日🙂"])
deltas = st.builds(
    Delta,
    parts=st.lists(texts.filter(bool).map(Content), max_size=1).map(tuple)
    | st.just((Reasoning("why"),))
    | st.just((Reasoning("so"), Content("x"))),
    entries=st.just(()),
    tokens=st.lists(st.integers(0, 2**31), max_size=3).map(tuple),
    times=st.lists(st.floats(0, 2e9), max_size=2).map(tuple),
    finish_reason=st.none() | st.none() | st.sampled_from(["stop", "length"]),
)


@pytest.mark.parametrize("kind", ["chat", "completion"])
@PATIENT
@given(
    told=st.lists(st.tuples(st.integers(0, 1), deltas), max_size=10), options=st.tuples(*[st.booleans()] * 3)
)
def test_pieces_are_what_objects_are(
    model: ServedModel, kind: str, told: list[tuple[int, Delta]], options: tuple[bool, bool, bool]
) -> None:
    """Two shapes are told the same, one by pieces where it can: the streams are equal."""
    ids, times, usage = options
    job = make_job(model, ids=ids, times=times, usage=usage)
    fast, slow = (make_shape(kind, job) for _ in range(2))
    choices = [open_choice(model, index) for index in range(2)]
    begun = set()
    for index, delta in told:
        choice = choices[index]
        expected = encode_chunks(slow, choice, delta, usage=usage)
        event = None
        if len(delta.parts) == 1 and isinstance(part := delta.parts[0], Content) and not delta.finish_reason:
            event = fast.text_event(index, part.text, delta.tokens, delta.times)
            assert (event is not None) == (index in begun)
        given_out = encode_chunks(fast, choice, delta, usage=usage) if event is None else event
        assert given_out == expected
        if given_out:
            begun.add(index)


@PATIENT
@given(text=st.text(alphabet="ab\né日🙂", max_size=20), groups=st.lists(st.integers(1, 4), max_size=60))
def test_one_token_at_a_time(model: ServedModel, text: str, groups: list[int]) -> None:
    """Tokens that come alone take the short way; the choice, and what it tells, are as if they had not."""
    tokens, alone, whole = text.encode(), open_choice(model, 0), open_choice(model, 0)
    told: list[Delta] = []
    at = 0
    for size in [*groups, *[1] * len(tokens)]:
        piece = tuple(tokens[at : at + size])
        times = tuple(float(at + k) for k in range(len(piece)))
        told.append(alone.feed(Output(at, piece, times=times)))
        at += len(piece)
    told.append(alone.feed(Output(at, (), end=ExitStatus("length"))))
    expected = whole.feed(
        Output(0, tuple(tokens), end=ExitStatus("length"), times=tuple(map(float, range(len(tokens)))))
    )
    assert "".join(delta.text for delta in told) == expected.text == text
    assert sum((delta.tokens for delta in told), ()) == expected.tokens
    assert sum((delta.times for delta in told), ()) == expected.times
    assert told[-1].finish_reason == expected.finish_reason
    for name in ("num_tokens", "num_shown", "num_decoded", "has_newline", "num_thinking"):
        assert getattr(alone, name) == getattr(whole, name), name
