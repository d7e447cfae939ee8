"""chat: one process, turn by turn."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from syscalls.process import ExitStatus, Spawn, Write
from tests.llmsh.harness import CTRL_C, ShellUnderTest, open_shell
from tests.llmsh.programs import answer_turns, wait_until
from tests.scripted_kernel import END, STOPPED_BY_MODEL, ScriptedProcess, open_scripted_kernel


async def run_chat(shell: ShellUnderTest) -> int:
    """Run a chat as a command of the shell."""
    return (await shell.run("chat"))[0]


async def test_turns_of_one_process_make_the_rendered_conversation(tmp_path: Path) -> None:
    """Each turn writes only what is new, and the process holds exactly what the template renders."""
    lines = ["first", "", "second é", "/exit"]
    async with open_scripted_kernel(tmp_path, answer_turns("one", "two")) as kernel:
        async with open_shell(tmp_path, lines, is_interactive=True) as shell:
            assert await run_chat(shell) == 0
            assert shell.out.getvalue() == "one\ntwo\n"
        (process,) = kernel.spawned
        assert process.prompt == (
            "<|user|>first<|end|><|assistant|>one<|end|><|user|>second é<|end|><|assistant|>two<|end|>"
        )
        assert [type(call) for call in kernel.calls if isinstance(call, Spawn | Write)] == [Spawn, Write]
        assert not kernel.processes, "the process outlived its chat"


async def test_an_answer_cut_by_its_limit_is_closed(tmp_path: Path) -> None:
    """After --max-tokens there is no end token: the next turn writes the mark that closes the answer."""
    async with open_scripted_kernel(tmp_path, answer_turns("abcdef")) as kernel:
        async with open_shell(tmp_path, ["first", "second", None], is_interactive=True) as shell:
            assert (await shell.run("chat --max-tokens 3"))[0] == 0
        assert kernel.spawned[0].prompt == (
            "<|user|>first<|end|><|assistant|>abc<|end|><|user|>second<|end|><|assistant|>abc"
        )


async def test_interrupt_ends_the_answer_not_the_chat(tmp_path: Path) -> None:
    """Ctrl-C during an answer kills its process; the next turn goes on with the whole conversation."""
    reached = trio.Event()

    async def program(process: ScriptedProcess) -> ExitStatus:
        if process.pid == 1:
            await process.say("half")
            reached.set()
            await trio.sleep_forever()
        await process.say("whole")
        await process.emit(END)
        return STOPPED_BY_MODEL

    async with open_scripted_kernel(tmp_path, program) as kernel:
        async with open_shell(tmp_path, [CTRL_C, "first"], is_interactive=True) as shell:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_chat, shell)
                await reached.wait()
                await wait_until(lambda: "half" in shell.out.getvalue())
                shell.shell.interrupt()
                shell.terminal.send("second", "/exit")
            assert shell.out.getvalue() == "half\n^C\nwhole\n"
            assert shell.shell.status == 0
        assert kernel.spawned[0].end is not None
        assert kernel.spawned[0].end.reason == "killed"
        assert kernel.spawned[1].prompt == (
            "<|user|>first<|end|><|assistant|>half<|end|><|user|>second<|end|><|assistant|>whole<|end|>"
        )
        assert not kernel.processes


async def test_killed_by_another_the_chat_goes_on(tmp_path: Path) -> None:
    """When its process is killed between turns, the next turn spawns one with all turns before it."""
    async with open_scripted_kernel(tmp_path, answer_turns("one")) as kernel:
        async with open_shell(tmp_path, ["first"], is_interactive=True) as shell:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_chat, shell)
                await wait_until(lambda: "one\n" in shell.out.getvalue())
                kernel.kill(kernel.processes[1])
                shell.terminal.send("second", None)
        assert kernel.spawned[1].prompt == (
            "<|user|>first<|end|><|assistant|>one<|end|><|user|>second<|end|><|assistant|>one<|end|>"
        )


async def test_a_restarted_kernel_gets_the_conversation(tmp_path: Path) -> None:
    """A kernel that went away costs an error message, not the chat."""
    async with open_shell(tmp_path, ["first"], is_interactive=True) as shell:
        async with trio.open_nursery() as nursery:
            async with open_scripted_kernel(tmp_path, answer_turns("one")):
                nursery.start_soon(run_chat, shell)
                await wait_until(lambda: "one\n" in shell.out.getvalue())
            (tmp_path / "llmos.sock").unlink()
            shell.terminal.send("lost")
            await wait_until(lambda: "no kernel answers" in shell.errors)
            async with open_scripted_kernel(tmp_path, answer_turns("two")) as kernel:
                shell.terminal.send("second")
                await wait_until(lambda: "two\n" in shell.out.getvalue())
                shell.terminal.send("/exit")
                await wait_until(lambda: not kernel.processes)
                assert kernel.spawned[0].prompt == (
                    "<|user|>first<|end|><|assistant|>one<|end|><|user|>second<|end|><|assistant|>two<|end|>"
                )


@pytest.mark.parametrize("line", ["/exi", "/quit"])
async def test_unknown_chat_commands_are_not_sent(tmp_path: Path, line: str) -> None:
    """A slip in /exit is an error, not a message to the model."""
    async with open_scripted_kernel(tmp_path) as kernel:
        async with open_shell(tmp_path, [line, None], is_interactive=True) as shell:
            assert await run_chat(shell) == 0
            assert f"chat: unknown command '{line}'" in shell.errors
            assert "/exit ends the chat" in shell.errors
        assert not kernel.spawned


async def test_a_model_without_template_cannot_chat(tmp_path: Path) -> None:
    """The error names the model and the command that works."""
    async with open_scripted_kernel(tmp_path, has_template=False), open_shell(tmp_path) as shell:
        assert (await shell.run("chat"))[0] == 1
        assert shell.errors == "chat: model scripted has no chat template; use 'run'\n"


async def test_a_chat_is_saved_and_goes_on_in_another_shell(tmp_path: Path) -> None:
    """/save makes an image, again under its own name, and not over another's; --image goes on from it."""
    async with open_scripted_kernel(tmp_path, answer_turns("one", "two")) as kernel:
        lines = ["/save", "/save early", "first", "/save mine", "/save mine", "/save taken", "/exit"]
        async with open_shell(tmp_path, lines, is_interactive=True) as shell:
            await shell.run("run --detach hi")
            assert (await shell.run("checkpoint 1 taken"))[0] == 0
            assert await run_chat(shell) == 0
            assert shell.errors == (
                "chat: /save takes the name of an image\n"
                "chat: there is nothing to save yet\n"
                "chat: EEXIST: there is an image taken; it was not replaced\n"
            )
        async with open_shell(tmp_path, ["second", "/exit"], is_interactive=True) as shell:
            assert (await shell.run("chat --image mine"))[0] == 0
            assert shell.out.getvalue() == "two\n"
            assert (await shell.run("chat --image taken"))[0] == 1
            assert "image taken is of no chat" in shell.errors
        assert kernel.spawned[-1].prompt == (
            "<|user|>first<|end|><|assistant|>one<|end|><|user|>second<|end|><|assistant|>two<|end|>"
        )


async def test_a_restored_chat_does_not_forget_silently(tmp_path: Path) -> None:
    """When its process is killed, what was said before is gone with it: the next turn says so."""
    async with open_scripted_kernel(tmp_path, answer_turns("one", "two")) as kernel:
        async with open_shell(tmp_path, ["first", "/save mine", "/exit"], is_interactive=True) as shell:
            await run_chat(shell)
        async with open_shell(tmp_path, [], is_interactive=True) as shell, trio.open_nursery() as nursery:
            nursery.start_soon(shell.run, "chat --image mine")
            await wait_until(lambda: len(shell.terminal.prompts) == 1)
            kernel.kill(kernel.spawned[-1])
            shell.terminal.send("second", "/exit")
        assert "its process is gone; 'chat --image' goes on" in shell.errors
