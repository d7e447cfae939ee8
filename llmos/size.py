"""`llmos size`: how much memory keys and values take, by number format, before a model is loaded.

What a model looks like is a driver's business, so a child process is asked: the kernel never imports torch.
"""

from __future__ import annotations

import subprocess
import sys

import msgspec

from drivers.builtin import base_path
from llmos.config import ConfigError
from llmos.device import KVFormat
from llmos.errors import LlmosError
from llmos.models import resolve_model, served_name

KIB = 1 << 10
MIB = 1 << 20


class ModelUnreadable(LlmosError):
    """A model's config.json or GGUF header cannot be read; the message says what is wrong with it."""


class ModelSizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What drivers/size.py prints."""

    num_parameters: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    formats: tuple[KVFormat, ...]


def ask_sizes(path: str) -> ModelSizes:
    """Read a folder's or GGUF file's sizes in a child. Blocks for a second or two. Raises ModelUnreadable."""
    command = [sys.executable, "-m", "drivers.size", path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise ModelUnreadable(lines[-1] if lines else f"{path}: exit code {result.returncode}")
    return msgspec.json.decode(result.stdout, type=ModelSizes)


def pool_bytes(kv: KVFormat, num_tokens: int, num_processes: int) -> int:
    """What so many processes of so many tokens take that share nothing: whole pages of each."""
    return num_processes * kv.num_pages(num_tokens) * kv.page_bytes


def write_sizes(name: str, sizes: ModelSizes, num_tokens: int, num_processes: int) -> str:
    """The table for people: a line about the model, a head, and a line for each number format."""
    head = ("KV", "A TOKEN", "A PAGE", "A PROCESS", "POOL")
    rows = [head]
    for kv in sizes.formats:
        one, all_of_them = (pool_bytes(kv, num_tokens, count) for count in (1, num_processes))
        token_bytes = sum(segment.bytes_per_token for segment in kv.segments)
        rows.append(
            (
                kv.name,
                f"{token_bytes:,} B",
                f"{kv.page_bytes / KIB:,.0f} KiB, {kv.tokens_per_page} tokens",
                f"{one / MIB:,.1f} MiB",
                f"{all_of_them / MIB:,.0f} MiB",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(
        [
            f"{name}: {sizes.num_parameters:,} parameters, {sizes.num_layers} layers, {sizes.num_kv_heads} "
            f"heads of keys and values of {sizes.head_dim}, context up to {sizes.max_model_len:,} tokens",
            f"{num_processes} processes of {num_tokens:,} tokens that share nothing:",
            *lines,
        ]
    )


def main(model: str, num_tokens: int | None, num_processes: int) -> int:
    """Print the table.

    Args:
        model: as of `llmos up --model`.
        num_tokens: of each process, prompt and output; None: the model's context.
        num_processes: at once.

    Raises:
        ConfigError, NoSuchModel, ModelUnreadable.
    """
    if num_processes < 1:
        raise ConfigError(f"processes is {num_processes}; at least 1")
    path = resolve_model(model, str(base_path()))
    sizes = ask_sizes(path)
    wanted = sizes.max_model_len if num_tokens is None else num_tokens
    if not 1 <= wanted <= sizes.max_model_len:
        raise ConfigError(f"context is {wanted}; 1 to {sizes.max_model_len}, the model's limit")
    name = "llmos-base" if model == "builtin" else served_name(path)
    print(write_sizes(name, sizes, wanted, num_processes))
    return 0
