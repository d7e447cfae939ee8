"""chat: a conversation with one process, which keeps its memory between turns."""

from __future__ import annotations

import attrs
import trio

from shell.llmsh.commands.generation import GENERATION_OPTIONS, make_spawn_options
from shell.llmsh.errors import CommandError
from shell.llmsh.jobs import Sample
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option, suggest
from shell.llmsh.pipe_job import GRACE_SECONDS
from shell.llmsh.table import Command
from shell.llmsh.terminal import CHAT_PROMPT, EndOfInput, LineAborted
from shell.llmsh.text import Turn, encode_conversation, encode_next_turn
from syscalls.client import Client, ConnectionLost
from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus
from syscalls.session import SpawnOptions
from syscalls.text.tokenizer import TextModel

EXIT_WORD, SAVE_WORD = "/exit", "/save"


async def chat(shell: Shell, arguments: Arguments) -> int:
    """`chat`: each line is a turn; /exit or Ctrl-D ends it."""
    options = make_spawn_options(arguments, label="chat")
    options["interactive"] = True
    client = await shell.client()
    model = await shell.find_model(client, arguments["model"])
    text = await shell.texts.open(model)
    options["model"] = model.name
    if not text.chat_template.is_available:
        raise CommandError(f"model {model.name} has no chat template; use 'run'")
    conversation = Conversation(shell, text, options)
    ends = f"{EXIT_WORD} or Ctrl-D ends the chat, Ctrl-C an answer"
    shell.screen.note(f"{model.name}: {ends}; {SAVE_WORD} NAME saves it")
    try:
        if (image := arguments["image"]) is not None:
            await conversation.restore(image)
        while (line := await _read_turn(shell)) is not None:
            if line.split()[0] == SAVE_WORD:
                await conversation.save(line.split()[1])
            else:
                await conversation.take_turn(line)
    finally:
        await conversation.close()
    return 0


async def _read_turn(shell: Shell) -> str | None:
    while True:
        try:
            line = (await shell.terminal.read_line(CHAT_PROMPT)).strip()
        except LineAborted:
            continue
        except EndOfInput:
            return None
        if line == EXIT_WORD:
            return None
        word, *operands = line.split() or [""]
        if word == SAVE_WORD and len(operands) != 1:
            shell.screen.error(f"chat: {SAVE_WORD} takes the name of an image")
        elif line.startswith("/") and " " not in line:
            words = [EXIT_WORD, SAVE_WORD]
            shell.screen.error(
                f"chat: unknown command {line!r}{suggest(line, words)}; {EXIT_WORD} ends the chat"
            )
        elif line:
            return line


@attrs.define(eq=False)
class Conversation:
    """The turns so far, and the process that holds them in memory.

    The process goes when an answer is interrupted, when somebody kills it, or with the kernel; the next turn
    then spawns another from the turns, and finds what it can in shared memory.
    """

    shell: Shell
    text: TextModel
    options: SpawnOptions
    turns: list[Turn] = attrs.field(factory=list)
    pid: int | None = None
    _client: Client | None = None
    _offset: int = 0  # output tokens of earlier turns
    _last_end: ExitStatus | None = None
    _images: set[str] = attrs.field(factory=set)  # that it was restored from or saved as: its own to replace
    _began_elsewhere: bool = False  # `turns` lacks what was said before it was restored

    async def restore(self, name: str) -> None:
        """Go on from an image: the turn that it was saved in first, if that is not over."""
        client = self._client = await self.shell.client()
        if any(image.name == name and not image.interactive for image in await client.images()):
            raise CommandError(f"image {name} is of no chat; 'restore {name}' lets it go on")
        self.pid = (await client.restore(name)).pids[0]
        self._images.add(name)
        self._began_elsewhere = True
        info = await client.stat(self.pid)
        self._offset, self._last_end = info.usage.num_output_tokens, info.status
        if info.status is None:
            await self._show_answer(client, self.pid)

    async def save(self, name: str) -> None:
        """Save it as an image. A failure does not end the chat."""
        if self.pid is None or self._client is None:
            self.shell.screen.error("chat: there is nothing to save yet")
            return
        try:
            await self._client.checkpoint(self.pid, name, overwrite=name in self._images)
        except SyscallError as error:
            self.shell.screen.error(f"chat: {error}")
        else:
            self._images.add(name)
            self.shell.screen.note(f"[saved; 'chat --image {name}' goes on from here]")

    async def take_turn(self, line: str) -> None:
        """Send the user's turn and show the answer. A failure or Ctrl-C ends the answer, not the chat."""
        if not self.shell.terminal.is_interactive:
            await self._answer(line)
            return
        with self.shell.foreground.interruptible() as scope:
            try:
                await self._answer(line)
            except (CommandError, SyscallError) as error:
                self.shell.screen.error(f"chat: {error}")
            except ConnectionLost as error:
                self.shell.connection.drop()
                self.pid = None
                self.shell.screen.error(f"chat: {error} ({self.shell.connection.socket_path})")
        if scope.cancelled_caught:
            self.shell.foreground.show_interrupt()

    async def close(self) -> None:
        """End the process."""
        if self.pid is None or self._client is None:
            return
        pid, self.pid = self.pid, None
        with trio.move_on_after(GRACE_SECONDS, shield=True):
            try:
                await self._client.kill(pid)
                await self._client.wait(pid)
            except (SyscallError, ConnectionLost):
                pass  # it is gone already

    async def _answer(self, line: str) -> None:
        pid, client = await self._send(line)
        self.turns.append(("user", line))
        await self._show_answer(client, pid)

    async def _show_answer(self, client: Client, pid: int) -> None:
        sample = Sample(pid, 0, self.text.decoder(), offset=self._offset)
        try:
            async for output in client.stream(pid, self._offset):
                self.shell.screen.write(sample.take(output))
            self.shell.screen.end_line()
        except (trio.Cancelled, SyscallError):
            await self.close()
            raise
        finally:
            self.turns.append(("assistant", sample.text))
        self._offset, self._last_end = sample.offset, sample.end
        assert sample.end is not None
        if sample.end.reason == "length":
            self.shell.screen.note("[the answer reached its limit of tokens]")
        if sample.end.code:
            await self.close()
            self.shell.screen.error(f"process {pid}: {sample.end.reason}: {sample.end.message}")

    async def _send(self, line: str) -> tuple[int, Client]:
        """Give the turn to the process, or to a new one when there is none."""
        client = await self.shell.client()
        if client is not self._client:
            self.pid = None  # it went with the session that it lived in
        self._client = client
        if self.pid is not None:
            stop_token = self._last_end.stop_token if self._last_end else None
            tokens = await encode_next_turn(self.text, line, stop_token)
            try:
                await client.write(self.pid, tokens, self.options["max_tokens"])
            except SyscallError as error:
                if error.errno not in (Errno.ESRCH, Errno.EBUSY):
                    raise
                await self.close()  # killed by somebody
            else:
                return self.pid, client
        if self._began_elsewhere:
            raise CommandError("its process is gone; 'chat --image' goes on from where it was saved")
        tokens = await encode_conversation(self.text, [*self.turns, ("user", line)])
        spawned = await client.spawn(tokens, **self.options)
        self.pid, self._offset = spawned.pids[0], 0
        return self.pid, client


COMMANDS = (
    Command(
        "chat",
        summary="Talk with a model",
        details=(
            "Each line is a turn; one process holds the conversation, so that a turn costs only its own "
            "tokens. Ctrl-C ends an answer, /exit or Ctrl-D the chat. /save NAME saves it as an image, and "
            "--image goes on from one, with the sampling that it had."
        ),
        function=chat,
        options=(*GENERATION_OPTIONS, Option(("--image",), "go on from an image", "NAME", completes="image")),
        is_alone=True,
        examples=(
            ("chat", "with the default model"),
            ("chat --image evening", "goes on from what '/save evening' saved"),
        ),
    ),
)
