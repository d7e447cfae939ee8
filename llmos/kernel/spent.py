"""What tenants have spent of their budgets: tokens, counted over all lives of the kernel, in a file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import msgspec
import trio

from llmos.errors import LlmosError
from syscalls.paths import state_folder

SAVE_SECONDS = 1.0  # between two saves; a kernel that is killed forgets no more than this
Note = Callable[[str], None]


class BudgetsUnreadable(LlmosError):
    """The file of what is spent is another kernel's, or cannot be read."""


class SpentFile(msgspec.Struct, forbid_unknown_fields=True):
    """The file: tokens by tenant. Edit it, or delete it, while no kernel runs."""

    spent: dict[str, int] = {}


@attrs.define(eq=False)
class Spent:
    """Counts tokens by tenant.

    Args:
        path: of the file; None: nothing is kept beyond this life.
    """

    path: Path | None = None
    _tokens: dict[str, int] = attrs.field(factory=dict)
    _changed: trio.Event = attrs.field(factory=trio.Event)
    _lock: int | None = None  # a descriptor: two kernels must not count in one file

    @property
    def is_open(self) -> bool:
        """True when what is counted is kept as long as it is to be."""
        return self.path is None or self._lock is not None

    def of(self, tenant: str) -> int:
        """Tokens that a tenant has spent."""
        return self._tokens.get(tenant, 0)

    def add(self, tenant: str, num_tokens: int) -> None:
        """Spend; below 0: give back what was not spent after all."""
        self._tokens[tenant] = max(0, self.of(tenant) + num_tokens)
        self._changed.set()

    def open(self) -> None:
        """Read the file, and keep others from it.

        Raises:
            BudgetsUnreadable: another kernel has it, or it cannot be read; the message names it.
        """
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                data = self.path.read_bytes() if self.path.exists() else b"{}"
                self._tokens = msgspec.json.decode(data, type=SpentFile).spent
            except BaseException:
                os.close(lock)
                raise
        except BlockingIOError as error:
            raise BudgetsUnreadable(
                f"another kernel counts in {self.path}; give this one a budget_file"
            ) from error
        except OSError as error:
            raise BudgetsUnreadable(f"cannot read {error.filename or self.path}: {error.strerror}") from error
        except msgspec.MsgspecError as error:
            raise BudgetsUnreadable(f"{self.path}: {error}") from error
        self._lock = lock

    def save(self) -> None:
        """Write what is counted, or leave what was. Blocks. Raises OSError."""
        assert self.path is not None
        draft = self.path.with_name(f".{self.path.name}.part")
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(SpentFile(dict(self._tokens))))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)

    def close(self, note: Note) -> None:
        """Save for the last time, and let others at the file. Idempotent."""
        if self._lock is None:
            return
        try:
            self.save()
        except OSError as error:
            note(f"budgets were not saved: {error}")
        os.close(self._lock)
        self._lock = None

    async def keep(
        self,
        run_blocking: Callable[..., Awaitable[Any]],
        note: Note,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Save what has changed, now and then, for ever. A disk that is full is noted, and tried again."""
        task_status.started()
        while True:
            await self._changed.wait()
            await trio.sleep(SAVE_SECONDS)
            self._changed = trio.Event()
            try:
                await run_blocking(self.save)
            except OSError as error:
                note(f"budgets were not saved: {error}")
                self._changed.set()


def default_budget_file() -> Path:
    """$XDG_STATE_HOME/llmos/budgets.json, else ~/.local/state/llmos/budgets.json."""
    return state_folder() / "budgets.json"
