"""`Choice` on its own: whatever the cuts, the same text, tokens and entries come out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shell.gateway.choice import Choice, Delta
from shell.gateway.reader import MessageReader, Reading
from syscalls.process import ExitStatus, Output, Usage
from syscalls.sampling import TokenLogprobs
from syscalls.text.stop import StopMatcher
from syscalls.text.tokenizer import TextModel
from tests.scripted_kernel import END, write_model_folder


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    """A tokenizer whose tokens are bytes."""
    return TextModel.open(write_model_folder(tmp_path_factory.mktemp("model")))


def run(
    text_model: TextModel, tokens: list[int], cuts: list[int], stops: list[str]
) -> tuple[Choice, list[Delta]]:
    """Feed tokens in pieces that end at `cuts`, then the end."""
    choice = Choice(
        index=0,
        pid=1,
        decoder=text_model.decoder(continues=True),
        reader=MessageReader(StopMatcher(stops)),
        end_tokens=frozenset({END}),
    )
    deltas = []
    borders = sorted({0, len(tokens), *(cut for cut in cuts if cut < len(tokens))})
    for start, stop in itertools.pairwise(borders):
        piece = tuple(tokens[start:stop])
        is_last = stop == len(tokens)
        end = ExitStatus("stop", stop_token=tokens[-1]) if is_last else None
        usage = Usage(num_output_tokens=stop) if is_last else Usage()
        logprobs = tuple(TokenLogprobs(-float(start + i)) for i in range(len(piece)))
        deltas.append(choice.feed(Output(start, piece, logprobs, end, usage)))
        if choice.is_finished:
            break
    return choice, deltas


texts = st.text(alphabet="ab🙂é日", max_size=20)


@settings(max_examples=200)
@given(
    text=texts, cuts=st.lists(st.integers(1, 60), max_size=8), stops=st.lists(texts.filter(bool), max_size=3)
)
def test_cuts_do_not_matter(text_model: TextModel, text: str, cuts: list[int], stops: list[str]) -> None:
    """Text, count, reasons and entries are those of the run that was read at once."""
    tokens = [*text.encode(), END]
    whole, (expected,) = run(text_model, tokens, [], stops)
    choice, deltas = run(text_model, tokens, cuts, stops)
    assert "".join(delta.text for delta in deltas) == expected.text
    assert [entry for delta in deltas for entry in delta.entries] == list(expected.entries)
    assert (choice.num_tokens, choice.finish_reason, choice.stop_reason) == (
        whole.num_tokens,
        whole.finish_reason,
        whole.stop_reason,
    )
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    told = [token for delta in deltas for token in delta.tokens]
    assert told == tokens[: choice.num_tokens]


@settings(max_examples=200)
@given(
    text=texts, cuts=st.lists(st.integers(1, 60), max_size=8), stops=st.lists(texts.filter(bool), max_size=3)
)
def test_entries_spell_the_text(text_model: TextModel, text: str, cuts: list[int], stops: list[str]) -> None:
    """In every delta the entries' bytes are the text's bytes: log-probabilities stay aligned."""
    tokens = [*text.encode(), END]
    choice, deltas = run(text_model, tokens, cuts, stops)
    start = 0
    for delta in deltas:
        assert bytes(entry.token for entry in delta.entries if entry.token != END).decode() == delta.text
        assert all(start <= entry.start < start + len(delta.text) for entry in delta.entries)
        start += len(delta.text)
    assert choice.num_shown == start
    if not any(stop in text for stop in stops):
        assert "".join(delta.text for delta in deltas) == text


@pytest.mark.parametrize(
    ("min_tokens", "shown"), [(0, "a"), (1, "a"), (2, "aba"), (3, "aba"), (4, "abab"), (9, "abab")]
)
def test_no_stop_string_ends_what_must_be_longer(text_model: TextModel, min_tokens: int, shown: str) -> None:
    """Not even with the last token that there must be; the next one does."""
    choice = Choice(
        index=0,
        pid=1,
        decoder=text_model.decoder(continues=True),
        reader=Reading().open(("b",), include_stop=False, is_armed=not min_tokens),
        min_tokens=min_tokens,
    )
    text = ""
    for number, token in enumerate(b"abab"):
        if not choice.is_finished:
            text += choice.feed(Output(number, (token,), (), None, Usage())).text
    assert text == shown
    assert choice.is_finished == (shown != "abab")


@pytest.mark.parametrize("reason", ["killed", "error"])
def test_bad_end_is_a_failure(text_model: TextModel, reason: str) -> None:
    """What was killed has no finish reason."""
    choice = Choice(index=0, pid=1, decoder=text_model.decoder(), reader=MessageReader(StopMatcher([])))
    delta = choice.feed(Output(0, (97,), (), ExitStatus(reason, message="why"), Usage()))
    assert (delta.text, delta.finish_reason) == ("a", None)
    assert choice.failure is not None
    assert choice.has_exited
    assert choice.is_finished


def test_end_token_that_is_not_among_the_tokens_counts(text_model: TextModel) -> None:
    """The kernel's own count decides at a natural end."""
    choice = Choice(index=0, pid=1, decoder=text_model.decoder(), reader=MessageReader(StopMatcher([])))
    choice.feed(Output(0, (97,), (), ExitStatus("stop", stop_token=END), Usage(num_output_tokens=2)))
    assert choice.num_tokens == 2


def test_end_token_is_hidden_before_the_end_is_known(text_model: TextModel) -> None:
    """An end token that is read before the exit it causes is not shown meanwhile."""
    reader = MessageReader(StopMatcher([]))
    choice = Choice(
        index=0, pid=1, decoder=text_model.decoder(), reader=reader, end_tokens=frozenset({ord("!")})
    )
    assert choice.feed(Output(0, tuple(b"ab!"))).text == "ab"
    last = choice.feed(Output(3, (), (), ExitStatus("stop", stop_token=ord("!")), Usage(num_output_tokens=3)))
    assert (last.text, last.finish_reason, choice.num_tokens) == ("", "stop", 3)
