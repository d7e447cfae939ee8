"""Makes the picture of top: a server with little memory, three tenants who want more, and one frame.

python docs/pictures/make_top.py
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path

import trio
from rich.console import Console
from rich.terminal_theme import MONOKAI

from llmos.bench.server import running_server
from shell.llmsh.commands.top_frame import Frame, draw, take_snapshot
from syscalls.client import open_client
from syscalls.sampling import Sampling
from syscalls.sync import SyncClient
from syscalls.text.tokenizer import TextModel

FOLDER = Path(__file__).parent
SERVER = "--device cpu --threads 1 --pool-mib 12 --frame-kib 64 --max-running 12 --swap-mib 64"
PROMPTS = {  # by tenant
    "chat": ("Tell me a story", "Why is the sky blue?", "Write a poem about rain"),
    "batch": (
        "Summarise chapter one",
        "Summarise chapter two",
        "Summarise chapter three",
        "Summarise chapter four",
    ),
    "lab": ("Once upon a time", "It was a dark night"),
}
WEIGHTS = {"chat": 3, "batch": 1, "lab": 1}
FIRST_SECONDS, FRAME_SECONDS = 4.0, 1.0
SIZE = {"width": 118, "height": 28}


def main() -> None:
    """Take the picture."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        tenants = Path(folder) / "tenants.toml"
        tenants.write_text("\n".join(f"[tenant.{name}]\n{describe(name)}" for name in PROMPTS))
        server = stack.enter_context(running_server(*SERVER.split(), "--tenants", str(tenants)))
        for name, prompts in PROMPTS.items():
            client = stack.enter_context(SyncClient(server.socket_path, name=name, key=name))
            text = TextModel.open(client.models()[0].path)
            for prompt in prompts:
                client.spawn(
                    text.encode(prompt), max_tokens=1900, ignore_eos=True, label=prompt,
                    sampling=Sampling(temperature=0.8, seed=1), num_samples=2,
                )  # fmt: skip
        frame = trio.run(look, server.socket_path)
    console = Console(file=io.StringIO(), record=True, force_terminal=True, highlight=False, **SIZE)
    console.print(frame, height=SIZE["height"])
    picture = console.export_svg(title="llmsh> top", theme=MONOKAI, unique_id="top")
    # The font is whatever the reader has: a picture should not ask other machines for one.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    (FOLDER / "top.svg").write_text(picture.replace("Fira Code, monospace", "monospace"), encoding="utf-8")


def describe(name: str) -> str:
    """A tenant's entry in the file; its key is its name."""
    return f'keys_sha256 = ["{hashlib.sha256(name.encode()).hexdigest()}"]\nweight = {WEIGHTS[name]}\n'


async def look(socket_path: str) -> Frame:
    """Return the second of two frames, which has rates."""
    async with open_client(socket_path, name="top") as client:
        await trio.sleep(FIRST_SECONDS)
        before = await take_snapshot(client)
        await trio.sleep(FRAME_SECONDS)
        return draw(await take_snapshot(client), before)


if __name__ == "__main__":
    main()
