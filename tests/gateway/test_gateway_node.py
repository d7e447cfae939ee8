"""The official OpenAI client for Node: list, chat, stream. Skipped where there is no node or no package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateway.harness import Gateway

VERSION = "openai@4"
PROGRAM = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const body = { model, messages: [{ role: "user", content: "hi" }], max_tokens: 6, temperature: 0 };
const whole = await client.chat.completions.create(body);
const said = [];
for await (const chunk of await client.chat.completions.create({ ...body, stream: true }))
  said.push(chunk.choices[0].delta.content ?? "");
let refused = "";
try { await client.chat.completions.create({ ...body, model: "no-such" }); }
catch (error) { refused = error.constructor.name + " " + error.code; }
const streamed = said.join("");
console.log(JSON.stringify({ model, whole: whole.choices[0].message.content, streamed, refused }));
"""


@pytest.fixture(scope="module")
def node_folder() -> Path:
    """A folder with the package, kept in the user's cache from run to run."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = cache / "llmos-tests" / "node"
    if not (folder / "node_modules" / ".package-lock.json").is_file():  # npm writes it last
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", VERSION]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("npm did not fetch the openai package within a minute")
        if done.returncode != 0:
            pytest.skip(f"npm cannot fetch the openai package: {done.stderr.strip()[-200:]}")
    return folder


def test_list_chat_stream(gateway: Gateway, node_folder: Path) -> None:
    """A model's name, a whole answer, the same in a stream, and an error of the client's own class."""
    program = node_folder / f"smoke-{os.getpid()}.mjs"
    program.write_text(PROGRAM)
    try:
        command = ["node", str(program), gateway.base_url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        program.unlink()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"] == "scripted"
    assert told["whole"] == told["streamed"] != ""
    assert told["refused"] == "NotFoundError model_not_found"
