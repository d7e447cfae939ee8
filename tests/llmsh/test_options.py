"""From words to options and operands, and the pages written from the same declarations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell.llmsh.commands import TABLE
from shell.llmsh.errors import UsageError
from shell.llmsh.manual import explain, summarize
from shell.llmsh.options import Option, parse_arguments
from shell.llmsh.table import FOREIGN, Command

OPTIONS = (
    Option(("--count", "-c"), "a number", "N", int),
    Option(("--word",), "a word", "W"),
    Option(("--id",), "many", "ID", int, is_repeated=True),
    Option(("--switch", "-s"), "a switch"),
)


@given(
    count=st.none() | st.integers(-9, 999),
    ids=st.lists(st.integers(0, 99), max_size=3),
    switch=st.booleans(),
    operands=st.lists(st.text("abc xyz", min_size=1, max_size=6), max_size=4),
    data=st.data(),
)
def test_options_may_stand_anywhere(
    count: int | None, ids: list[int], switch: bool, operands: list[str], data: st.DataObject
) -> None:
    """Whatever the order and the spelling, options and operands are told apart and keep their own order."""
    pieces: list[list[str]] = [[operand] for operand in operands]
    spellings = [["--id", str(i)] if data.draw(st.booleans()) else [f"--id={i}"] for i in ids]
    if count is not None:
        spellings.append(data.draw(st.sampled_from([["-c", str(count)], [f"--count={count}"]])))
    if switch:
        spellings.append([data.draw(st.sampled_from(["-s", "--switch"]))])
    for spelling in spellings[len(ids) :]:
        pieces.insert(data.draw(st.integers(0, len(pieces))), spelling)
    pieces[:0] = spellings[: len(ids)]
    arguments = parse_arguments([word for piece in pieces for word in piece], OPTIONS)
    assert arguments.operands == tuple(operands)
    assert arguments["count"] == count
    assert arguments["id"] == tuple(ids)
    assert bool(arguments["switch"]) == switch
    assert arguments["word"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cuont", "3"], "unknown option '--cuont': did you mean '--count'"),
        (["--zzz"], "unknown option '--zzz'; write -- before"),
        (["--count"], "--count needs a value: --count, -c N"),
        (["--count", "three"], "--count 'three': a whole number is needed"),
        (["--switch=1"], "--switch takes no value"),
        (["-c", "1", "--count", "2"], "--count is given twice"),
    ],
)
def test_wrong_options_are_explained(words: list[str], message: str) -> None:
    """Each mistake names the option, and what would have been right."""
    with pytest.raises(UsageError, match=message):
        parse_arguments(words, OPTIONS)


def test_dashes_in_text_are_text() -> None:
    """Negative numbers, lone dashes, sentences and all that follows -- are operands."""
    words = ["-5", "-", "- milk", "--", "--count", "-s"]
    assert parse_arguments(words, OPTIONS).operands == ("-5", "-", "- milk", "--count", "-s")


def test_every_command_has_a_page() -> None:
    """Help is complete: usage, a paragraph, every option; and the list has every command."""
    listing = summarize(TABLE)
    for command in TABLE:
        page = explain(command)
        assert page.startswith(f"usage: {command.name}")
        assert all(option.synopsis in page and option.help in page for option in command.all_options)
        assert f"  {command.name} " in listing


def test_the_table_has_the_commands_of_the_contract() -> None:
    """None of the listed commands is missing."""
    names = (
        "run chat ps top kill stop cont nice fork wait fg bg jobs free cache dmesg lsdev models stat cat "
        "tail why maps whoami tenants checkpoint restore images rm-image shutdown help exit "
        "echo tee grep head wc set unset time watch history strace man clear load unload sleep wake"
    )
    assert {command.name for command in TABLE} == set(names.split())


@pytest.mark.parametrize(
    ("wrong", "right"), [("pss", "ps"), ("hepl", "help"), ("model", "models"), ("ls", "ps")]
)
def test_unknown_commands_get_a_suggestion(wrong: str, right: str) -> None:
    """A slip of the finger is answered with the command that was meant."""
    with pytest.raises(UsageError, match=f"unknown command '{wrong}': did you mean '{right}'"):
        TABLE.find(wrong)


def test_operands_are_counted() -> None:
    """Too few and too many are refused with the usage line."""
    stat: Command = TABLE.find("stat")
    with pytest.raises(UsageError, match=r"usage: stat \[options\] PID"):
        stat.parse([])
    with pytest.raises(UsageError, match="'2' is one too many"):
        stat.parse(["1", "2"])


def test_names_from_elsewhere_lead_to_commands() -> None:
    """Each name that another shell has for a command is none of ours, and names one of ours."""
    for foreign, meant in FOREIGN.items():
        assert foreign not in TABLE
        assert meant in TABLE
