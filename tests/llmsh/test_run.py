"""run: what is spawned, what is shown, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus, Spawn
from syscalls.sampling import Sampling
from syscalls.text.grammar import choice_grammar, json_grammar, read_grammar, regex_grammar
from tests.llmsh.harness import open_shell
from tests.llmsh.programs import say
from tests.scripted_kernel import STOPPED_BY_MODEL, ScriptedProcess, open_scripted_kernel

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("end", "code", "complaint"),
    [
        (STOPPED_BY_MODEL, 0, ""),
        (ExitStatus("length"), 0, ""),
        (ExitStatus("killed", message="out of memory"), 137, "process 1: killed: out of memory\n"),
        (ExitStatus("error", message="driver fault"), 1, "process 1: error: driver fault\n"),
    ],
)
async def test_exit_code_says_how_it_ended(
    tmp_path: Path, end: ExitStatus, code: int, complaint: str
) -> None:
    """0 for stop and length, 137 for killed, 1 for an error, whose reason goes to standard error."""
    async with open_scripted_kernel(tmp_path, say("text", end)) as kernel, open_shell(tmp_path) as shell:
        assert await shell.run("run hi") == (code, "text\n")
        assert shell.errors == complaint
        assert not kernel.processes, "the process was not reaped"


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ("run hello 'big  world'", "<|user|>hello big  world<|end|><|assistant|>"),
        ("run --chat hello", "<|user|>hello<|end|><|assistant|>"),
        ("run --raw hello", "hello"),
    ],
)
async def test_prompt_is_rendered(tmp_path: Path, line: str, prompt: str) -> None:
    """The chat template is used when there is one, and left out with --raw; words are joined by a blank."""
    async with open_scripted_kernel(tmp_path, say("")) as kernel, open_shell(tmp_path) as shell:
        await shell.run(line)
        assert kernel.spawned[0].prompt == prompt + "<|end|>"


async def test_model_without_template(tmp_path: Path) -> None:
    """Without a template the prompt is taken as it stands, and --chat is refused with the way out."""
    async with open_scripted_kernel(tmp_path, say(""), has_template=False) as kernel:
        async with open_shell(tmp_path) as shell:
            assert (await shell.run("run hello"))[0] == 0
            assert kernel.spawned[0].prompt == "hello<|end|>"
            assert (await shell.run("run --chat hello"))[0] == 1
            assert "has no chat template" in shell.errors
            assert "--raw" in shell.errors


async def test_options_reach_the_kernel(tmp_path: Path) -> None:
    """Every option of run arrives in the spawn."""
    line = (
        "run --raw -m scripted --max-tokens 9 -t 0.5 --top-p 0.9 --top-k 7 --min-p 0.1 --seed -3 "
        "--stop-token 5 --stop-token 6 --nice -4 --n 2 x y"
    )
    async with open_scripted_kernel(tmp_path, say("")) as kernel, open_shell(tmp_path) as shell:
        await shell.run(line)
        assert next(call for call in kernel.calls if isinstance(call, Spawn)) == Spawn(
            prompt=tuple(b"x y"),
            max_tokens=9,
            sampling=Sampling(temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, seed=-3),
            model="scripted",
            num_samples=2,
            stop_token_ids=(5, 6),
            nice=-4,
            label="x y",
        )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run", "run: a prompt or an input is missing: run PROMPT, run < FILE, or COMMAND | run PROMPT"),
        ("run --top-p 2 x", "run: top_p is 2.0; the limit is above 0, at most 1"),
        ("run --max-tokens 0 x", "run: --max-tokens '0': a whole number from 1 is needed"),
        ("run --nice 20 x", "run: --nice '20': a nice level is a whole number from -20 to 19"),
        ("run --regex 'a(' x", "run: --regex: "),
        ("run --regex a --choice b x", "run: --regex and --choice exclude each other"),
        ("run --raw --chat x", "run: --raw and --chat exclude each other"),
        ("run --temprature 1 x", "run: unknown option '--temprature': did you mean '--temperature'?"),
    ],
)
async def test_wrong_use_is_2_and_spawns_nothing(tmp_path: Path, line: str, message: str) -> None:
    """A mistake in the call is found before the kernel hears of it."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        assert await shell.run(line) == (2, "")
        assert message in shell.errors
        assert not kernel.spawned


@pytest.mark.parametrize(
    ("flag", "text", "wanted"),
    [
        ("--schema", json.dumps(SCHEMA), json_grammar(SCHEMA)),
        ("--grammar", 'root ::= "a" | "b"', read_grammar('root ::= "a" | "b"')),
        ("--grammar", 'start: "a"', 'start: "a"'),
    ],
)
async def test_files_give_the_output_its_form(tmp_path: Path, flag: str, text: str, wanted: str) -> None:
    """A file's schema or grammar is part of the process."""
    file = tmp_path / "form"
    file.write_text(text)
    async with open_scripted_kernel(tmp_path, say("")) as kernel, open_shell(tmp_path) as shell:
        assert (await shell.run(f"run {flag} {file} x"))[0] == 0
        assert kernel.spawned[0].spawn.sampling.grammar == wanted


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--regex [0-9]+", regex_grammar("[0-9]+")),
        ("--choice yes --choice 'not yet'", choice_grammar(["yes", "not yet"])),
    ],
)
async def test_words_give_the_output_its_form(tmp_path: Path, words: str, wanted: str) -> None:
    """So are an expression, and texts to choose from."""
    async with open_scripted_kernel(tmp_path, say("")) as kernel, open_shell(tmp_path) as shell:
        assert (await shell.run(f"run {words} x"))[0] == 0
        assert kernel.spawned[0].spawn.sampling.grammar == wanted


@pytest.mark.parametrize(
    ("flag", "content", "code", "message"),
    [
        ("--schema", b"{", 2, "run: --schema: the file is not JSON"),
        ("--schema", b"3", 2, "run: --schema: a schema is an object"),
        ("--schema", b'{"not": {}}', 2, "not"),
        ("--grammar", b"root ::= missing", 2, "missing"),
        ("--grammar", b"start: nowhere", 2, "nowhere"),
        ("--grammar", b"\xff", 1, "is not UTF-8"),
        ("--schema", None, 1, "No such file"),
    ],
)
async def test_forms_that_cannot_be_had(
    tmp_path: Path, flag: str, content: bytes | None, code: int, message: str
) -> None:
    """The part at fault is named, and nothing runs."""
    file = tmp_path / "form"
    if content is not None:
        file.write_bytes(content)
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        assert await shell.run(f"run {flag} {file} x") == (code, "")
        assert message in shell.errors
        assert not kernel.spawned


async def test_kernel_refusal_is_1_with_a_hint(tmp_path: Path) -> None:
    """The kernel's error comes out with its code, its numbers, and what to do."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        assert (await shell.run("run --max-tokens 99999 x"))[0] == 1
        assert "run: E2BIG: the context is 4096 tokens" in shell.errors
        assert "lower --max-tokens" in shell.errors
        kernel.refusals[Spawn] = SyscallError(Errno.ESHUTDOWN, "the kernel is draining")
        assert (await shell.run("run x"))[0] == 1
        assert "run: ESHUTDOWN: the kernel is draining\n" in shell.errors


async def test_unknown_model_lists_the_served(tmp_path: Path) -> None:
    """A wrong model name is answered with the right ones."""
    async with open_scripted_kernel(tmp_path), open_shell(tmp_path) as shell:
        assert (await shell.run("run -m other x"))[0] == 1
        assert shell.errors == "run: no model 'other'; served: scripted\n"


async def test_characters_come_whole(tmp_path: Path) -> None:
    """A character whose bytes are spread over tokens is written once, complete."""
    text = "naïve 日本 🙂"
    async with open_scripted_kernel(tmp_path, say(text)), open_shell(tmp_path) as shell:
        assert await shell.run("run hi") == (0, f"{text}\n")


async def test_end_token_is_not_text(tmp_path: Path) -> None:
    """A stop token that is an ordinary character is not shown; the same character before it is."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        await process.say("a.b.")
        return ExitStatus("stop", stop_token=ord("."))

    async with open_scripted_kernel(tmp_path, program), open_shell(tmp_path) as shell:
        assert await shell.run("run --stop-token 46 hi") == (0, "a.b\n")


async def test_output_that_ends_in_a_newline_gets_no_other(tmp_path: Path) -> None:
    """The prompt starts on a line of its own, without a blank one before it."""
    async with open_scripted_kernel(tmp_path, say("line\n")), open_shell(tmp_path) as shell:
        assert await shell.run("run hi") == (0, "line\n")


async def test_samples_are_told_apart(tmp_path: Path) -> None:
    """With --n each output has a header with its pid and seed; the exit code is the first bad one."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        await process.say(f"answer {process.sample}")
        return ExitStatus("killed") if process.sample == 1 else ExitStatus("length")

    async with open_scripted_kernel(tmp_path, program) as kernel, open_shell(tmp_path) as shell:
        code, out = await shell.run("run --n 3 --seed 40 hi")
        assert code == 137
        assert out == (
            "--- sample 0: process 1, seed 40\nanswer 0\n"
            "--- sample 1: process 2, seed 41\nanswer 1\n"
            "--- sample 2: process 3, seed 42\nanswer 2\n"
        )
        assert not kernel.processes


async def test_json_result(tmp_path: Path) -> None:
    """--json prints one object for each sample, with text, status and usage, and no stream."""
    async with open_scripted_kernel(tmp_path, say('say "é"')), open_shell(tmp_path) as shell:
        code, out = await shell.run("run --json --seed 5 hi")
        (row,) = json.loads(out)
        assert code == 0
        assert (row["pid"], row["seed"], row["text"]) == (1, 5, 'say "é"')
        assert row["status"] == {"reason": "stop", "stop_token": 256, "message": ""}
        assert row["usage"]["num_output_tokens"] == len('say "é"'.encode()) + 1


async def test_detached_process_outlives_the_shell(tmp_path: Path) -> None:
    """--detach prints the pid at once; another shell reads its output and collects its end."""
    async with open_scripted_kernel(tmp_path, say("kept")) as kernel:
        async with open_shell(tmp_path) as first:
            assert await first.run("run --detach hi") == (0, "1\n")
        async with open_shell(tmp_path) as second:
            assert (await second.run("wait 1"))[0] == 0
            assert not kernel.processes
            assert (await second.run("cat 1"))[0] == 1
            assert "cat: ESRCH: no process 1; you have no process" in second.errors
