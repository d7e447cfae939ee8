"""What `run` and `chat` share: options that shape the output, and the spawn arguments made of them."""

from __future__ import annotations

import math

from shell.llmsh.errors import UsageError
from shell.llmsh.options import Arguments, Option
from syscalls.process import MAX_NICE, MIN_NICE
from syscalls.sampling import Sampling
from syscalls.session import SpawnOptions

LABEL_CHARACTERS = 60


def read_count(text: str) -> int:
    """Convert an option that counts something. Raises ValueError."""
    count = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if count < 1:
        raise ValueError("a whole number from 1 is needed")
    return count


def read_nice(text: str) -> int:
    """Convert a nice level. Raises ValueError."""
    try:
        level = int(text)
    except ValueError:
        level = MAX_NICE + 1
    if not MIN_NICE <= level <= MAX_NICE:
        raise ValueError(f"a nice level is a whole number from {MIN_NICE} to {MAX_NICE}")
    return level


def read_seconds(text: str) -> float:
    """Convert a time that is not nothing. Raises ValueError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ValueError("a number of seconds above 0 is needed")
    return seconds


GENERATION_OPTIONS = (
    Option(("--model", "-m"), "the model to run; the kernel's default otherwise", "NAME", completes="model"),
    Option(("--max-tokens",), "most tokens of output; otherwise up to the context", "N", read_count),
    Option(("--temperature", "-t"), "0 (the default) takes the likeliest token; up to 2", "T", float),
    Option(("--top-p",), "sample from the likeliest tokens that make up P", "P", float),
    Option(("--top-k",), "sample from the K likeliest tokens; 0: all", "K", int),
    Option(("--min-p",), "leave out tokens below P times the likeliest", "P", float),
    Option(("--seed",), "repeat a sampled output; otherwise the kernel draws one", "S", int),
    Option(("--stop-token",), "end at this token id; may be repeated", "ID", int, is_repeated=True),
    Option(("--nice",), "-20 (first) to 19 (last)", "N", read_nice),
    Option(("--deadline",), "done within so long, please; a wish among equals", "SECONDS", read_seconds),
)


def make_spawn_options(arguments: Arguments, label: str, grammar: str | None = None) -> SpawnOptions:
    """Make the arguments of a spawn from `GENERATION_OPTIONS`. Raises UsageError for a bad sampling value."""
    given = {
        name: arguments[name]
        for name in ("temperature", "top_p", "top_k", "min_p", "seed")
        if arguments[name] is not None
    }
    sampling = Sampling(**given, grammar=grammar)
    if (problem := sampling.explain_invalid()) is not None:
        raise UsageError(problem)
    return SpawnOptions(
        max_tokens=arguments["max_tokens"],
        sampling=sampling,
        stop_token_ids=arguments["stop_token"],
        nice=arguments["nice"] or 0,
        deadline_seconds=arguments["deadline"],
        label=" ".join(label.split())[:LABEL_CHARACTERS],
    )
