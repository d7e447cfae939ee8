"""Which of several ways to the same bits is the fastest on this device: measured once, and remembered."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch
import triton

from drivers.cache import cache_folder
from drivers.triton_ops.operands import INTERPRETED
from drivers.triton_ops.tiles import Tile

__all__ = ["Tuner", "open_tuner"]

Measure = Callable[[Callable[[], object]], float]
WARM_UP_MS, MEASURE_MS = 3, 15


class Tuner:
    """Chooses tiles by what `measure` says, and keeps what it chose in a file.

    Args:
        path: of the file; what cannot be read or written is measured again.
        measure: the time of a call, in any unit.
    """

    def __init__(self, path: Path, measure: Measure) -> None:
        self._path, self._measure = path, measure
        self.num_measured = 0
        try:
            self._chosen = msgspec.json.decode(path.read_bytes(), type=dict[str, list[int]])
        except (OSError, msgspec.DecodeError):
            self._chosen = {}

    def choose(self, name: str, tiles: Sequence[Tile], call: Callable[[Tile], object]) -> Tile:
        """The fastest of some tiles.

        Args:
            name: of what is computed, and of how much of it.
            tiles: at least one; all give the same bits.
            call: computes it.
        """
        if len(tiles) == 1:
            return tiles[0]
        known = {tuple(_numbers(tile)): tile for tile in tiles}
        if (found := known.get(tuple(self._chosen.get(name, ())))) is not None:
            return found
        times = [self._measure(lambda tile=tile: call(tile)) for tile in tiles]  # type: ignore[misc]
        self.num_measured += len(times)
        best = tiles[times.index(min(times))]
        self._chosen[name] = _numbers(best)
        self._write()
        return best

    def _write(self) -> None:
        """All at once: another driver may be reading, or writing the same."""
        draft = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(msgspec.json.format(msgspec.json.encode(self._chosen)))
            draft.replace(self._path)
        except OSError:
            draft.unlink(missing_ok=True)


def _numbers(tile: Tile) -> list[int]:
    return [tile.rows, tile.columns, tile.num_warps, tile.num_stages]


def open_tuner() -> tuple[Tuner, int] | None:
    """A tuner for the GPU that triton launches on, and its shared memory; None: there is none to measure."""
    if INTERPRETED or not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    name = "".join(each if each.isalnum() else "-" for each in f"{device.name} triton {triton.__version__}")
    shared_bytes = triton.runtime.driver.active.utils.get_device_properties(torch.cuda.current_device())[
        "max_shared_mem"
    ]

    def measure(call: Callable[[], object]) -> float:
        # each time with other things in the cache: weights come from memory
        return float(triton.testing.do_bench(call, warmup=WARM_UP_MS, rep=MEASURE_MS, return_mode="median"))

    return Tuner(cache_folder("tiles") / f"{name}.json", measure), int(shared_bytes)
