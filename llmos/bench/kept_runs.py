"""Runs of `llmos bench switch` in a file, each as soon as it has ended: what was measured is not lost."""

from __future__ import annotations

from pathlib import Path

import attrs
import msgspec

from llmos.bench.report import current_commit
from llmos.bench.switch_run import SwitchRun
from llmos.config import ConfigError


class _Line(msgspec.Struct, frozen=True):
    """One thing that was measured: a run, or a number that later runs depend on."""

    commit: str
    case: str
    what: str
    seed: int = 0
    run: SwitchRun | None = None
    numbers: tuple[float, ...] = ()


Key = tuple[str, str, int]  # case, what, seed


@attrs.define(eq=False)
class KeptRuns:
    """What was measured, by case, name and seed.

    Lines of other commits are left where they are, and are not used: what they measured was other code.

    Args:
        path: of the file, which need not exist; None: nothing is kept.

    Raises:
        ConfigError: the file is none of ours, or cannot be read.
    """

    path: str | None = None
    _commit: str = attrs.field(init=False, factory=current_commit)
    _found: dict[Key, _Line] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        if self.path is None or not Path(self.path).exists():
            return
        try:
            lines = Path(self.path).read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise ConfigError(f"kept runs {self.path} cannot be read: {error.strerror}") from error
        decoder = msgspec.json.Decoder(_Line)
        for number, line in enumerate(lines, 1):
            try:
                found = decoder.decode(line)
            except msgspec.DecodeError as error:
                if not line.endswith(b"\n"):
                    break  # it was stopped in the middle of this one
                raise ConfigError(f"kept runs {self.path}, line {number}: {error}") from error
            if found.commit == self._commit:
                self._found[found.case, found.what, found.seed] = found
        if lines and not lines[-1].endswith(b"\n"):
            Path(self.path).write_bytes(b"".join(lines[:-1]))

    def run(self, case: str, what: str, seed: int) -> SwitchRun | None:
        """A run that was made already."""
        line = self._found.get((case, what, seed))
        return None if line is None else line.run

    def numbers(self, case: str, what: str, seed: int = 0) -> tuple[float, ...] | None:
        """Numbers that were measured already."""
        line = self._found.get((case, what, seed))
        return None if line is None else line.numbers

    def keep_run(self, case: str, what: str, seed: int, run: SwitchRun) -> None:
        """Add a run. Raises OSError."""
        self._keep(_Line(self._commit, case, what, seed, run=run))

    def keep_numbers(self, case: str, what: str, seed: int, numbers: tuple[float, ...]) -> None:
        """Add numbers. Raises OSError."""
        self._keep(_Line(self._commit, case, what, seed, numbers=numbers))

    def _keep(self, line: _Line) -> None:
        self._found[line.case, line.what, line.seed] = line
        if self.path is not None:
            with open(self.path, "ab") as file:
                file.write(msgspec.json.encode(line) + b"\n")
