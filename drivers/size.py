"""`python -m drivers.size PATH`: what a model's parts take, as one line of JSON; no weight is read.

A folder needs no more than its config.json. See llmos/size.py, which prints it for people.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import msgspec

from drivers.model.config import ModelConfig, read_config
from drivers.model.errors import ModelError
from drivers.model.gguf.config import read_gguf_config
from drivers.model.gguf.file import GgufFile
from drivers.model.kv_layout import kv_segments
from drivers.model.loader import wanted_tensors
from llmos.device import choose_kv_format

FORMATS = ("fp32", "fp16", "bf16", "int8")


def measure(config: ModelConfig) -> dict[str, Any]:
    """Sizes of a model: counts, and for each number format of keys and values how they lie in frames."""
    return {
        "num_parameters": sum(math.prod(shape) for _, shape in wanted_tensors(config)),
        "num_layers": config.num_layers,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_model_len": config.max_positions,
        "formats": [choose_kv_format(name, kv_segments(config, name), None) for name in FORMATS],
    }


def main(path: Path) -> int:
    """Print the sizes; returns the exit code: 1 where the model cannot be read, with the reason."""
    try:
        config = read_gguf_config(GgufFile.open(path)) if path.is_file() else read_config(path)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    print(msgspec.json.encode(measure(config)).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
