"""Renders a chat template that came with a request, in a process of its own with little time and memory.

The sandbox keeps such a template from files and attributes; what it cannot bound is work: two lines of Jinja
can loop for ever or fill the memory.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import msgspec
import trio

from shell.gateway.errors import invalid_value
from syscalls.text.template import ChatTemplate, TemplateError

Json = dict[str, Any]

MAX_TEMPLATE_CHARACTERS = 64 << 10
MAX_CPU_SECONDS = 2
MAX_SECONDS = 10.0
MAX_MEMORY_BYTES = 512 << 20


class Rendering(msgspec.Struct, kw_only=True):
    """What is to be rendered."""

    template: str
    special_tokens: dict[str, str]
    messages: list[Json]
    add_generation_prompt: bool
    continue_final_message: bool
    tools: list[Json] | None
    variables: Json


class Rendered(msgspec.Struct, kw_only=True):
    """The prompt, or why there is none."""

    prompt: str = ""
    refusal: str | None = None


async def render_apart(rendering: Rendering) -> str:
    """Render in a new process; returns the prompt. A checkpoint; the process never outlives it.

    Raises:
        TemplateError: the template's refusal.
        ApiError: 400: the template is too long, or took too much time or memory.
    """
    if (length := len(rendering.template)) > MAX_TEMPLATE_CHARACTERS:
        message = f"'chat_template' has {length} characters; the limit is {MAX_TEMPLATE_CHARACTERS}."
        raise invalid_value("chat_template", message)
    command = [sys.executable, "-m", "shell.gateway.template_process"]
    with trio.move_on_after(MAX_SECONDS):
        done = await trio.run_process(
            command,
            stdin=msgspec.json.encode(rendering),
            capture_stdout=True,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode == 0:
            rendered = msgspec.json.decode(done.stdout, type=Rendered)
            if rendered.refusal is not None:
                raise TemplateError(rendered.refusal)
            return rendered.prompt
    message = (
        f"'chat_template' took more than {MAX_CPU_SECONDS} seconds or {MAX_MEMORY_BYTES >> 20} MiB to render."
    )
    raise invalid_value("chat_template", message)


def main() -> None:
    """Render what stands on standard input, as JSON, to standard output."""
    rendering = msgspec.json.decode(sys.stdin.buffer.read(), type=Rendering)
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    template = ChatTemplate({"default": rendering.template}, rendering.special_tokens)
    try:
        prompt = template.render(
            rendering.messages,
            rendering.add_generation_prompt,
            rendering.continue_final_message,
            rendering.tools,
            **rendering.variables,
        )
        rendered = Rendered(prompt=prompt)
    except TemplateError as error:
        rendered = Rendered(refusal=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(rendered))


if __name__ == "__main__":
    main()
