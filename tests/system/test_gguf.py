"""What if the model is a GGUF file?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI

from drivers.builtin import base_path
from llmos.bench.server import running_server
from syscalls.sync import SyncClient
from tests.drivers.gguf_files import write_gguf
from tests.system.leaks import counted_server

OPTIONS = ("--device", "cpu", "--threads", "1", "--pool-mib", "128", "--weights", "bf16")
CHAT = [{"role": "user", "content": "What is the capital of France? Answer in short — naïve."}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model as a file of bf16."""
    return write_gguf(base_path(), tmp_path_factory.mktemp("gguf") / "Little.gguf", "BF16", tokenizer=True)


def answers(*options: str) -> tuple[str, list[object]]:
    """Boot a server, and ask it for a completion and a chat. Returns the model's name, and what it said."""
    with counted_server(*OPTIONS, *options) as server:
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            name = client.models.list().data[0].id
            completion = client.completions.create(
                model=name, prompt="Once upon a time", max_tokens=24, temperature=0, logprobs=2
            ).choices[0]
            chat = client.chat.completions.create(
                model=name, messages=CHAT, max_tokens=24, temperature=1.0, seed=7
            )
        found = [completion.text, completion.logprobs, completion.finish_reason]
        found += [chat.choices[0].message.content, chat.choices[0].finish_reason, chat.usage.prompt_tokens]
    return name, found


def test_a_file_serves_what_its_folder_serves(path: Path) -> None:
    """The same text, log-probabilities and counts come from the file as from the folder it was made of."""
    name, found = answers("--model", str(path))
    assert name == "Little"
    assert found == answers()[1]


def test_text_comes_from_the_cache(path: Path) -> None:
    """Clients are told of a folder that holds the tokenizer; damage to the file is refused by its name."""
    with running_server(*OPTIONS, "--model", str(path), gateway=False) as server:
        with SyncClient(server.socket_path) as client:
            (model,) = client.models()
    names = {file.name for file in Path(model.path).iterdir()}
    assert names == {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    broken = path.with_name("broken.gguf")
    broken.write_bytes(path.read_bytes()[:-1000])
    for device, message in (("cpu", "broken.gguf is truncated: tensor"), ("sim", "a simulated device needs")):
        result = subprocess.run(
            [
                *(sys.executable, "-m", "llmos.cli", "up", "--device", device, "--listen", ""),
                *("--socket", str(path.with_name("s")), "--model", str(broken)),
            ],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert result.returncode == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr
