"""The process table: every process by its pid."""

from __future__ import annotations

from collections.abc import Iterator

from llmos.params import MAX_PROCESSES
from llmos.proc.lifecycle import ProcState
from llmos.proc.pcb import Pid, Process
from syscalls.errno import Errno, SyscallError


class ProcessTable:
    """The processes that have not been reaped. A pid is never used twice while the kernel runs."""

    def __init__(self) -> None:
        self._processes: dict[Pid, Process] = {}
        self._next_pid = 1
        self.num_exited = 0  # counted by the Cores as processes end

    def __len__(self) -> int:
        return len(self._processes)

    def __contains__(self, process: Process) -> bool:
        return process.pid in self._processes  # no other ever has this pid

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._processes.values()))

    def new_pids(self, count: int) -> list[Pid]:
        """Reserve pids for `count` processes that will be added.

        Raises:
            SyscallError: EAGAIN, the table has no room for so many.
        """
        if len(self._processes) + count > MAX_PROCESSES:
            raise SyscallError(
                Errno.EAGAIN,
                f"process table full: {len(self._processes)} of {MAX_PROCESSES}, {count} more wanted",
            )
        pids = [Pid(self._next_pid + i) for i in range(count)]
        self._next_pid += count
        return pids

    def add(self, process: Process) -> None:
        """Enter a process made with a pid from `new_pids`."""
        self._processes[process.pid] = process

    def get(self, pid: int) -> Process:
        """Look a process up. Raises SyscallError: ESRCH."""
        process = self._processes.get(Pid(pid))
        if process is None:
            raise SyscallError(Errno.ESRCH, f"no process {pid}")
        return process

    def reap(self, process: Process) -> None:
        """Take a zombie out of the table. Does nothing when it is gone already."""
        if process.state is ProcState.ZOMBIE:
            self._processes.pop(process.pid, None)

    def discard(self, process: Process) -> None:
        """Take out a process that never came to life. Does nothing when it is gone already."""
        if process.state is ProcState.EMBRYO:
            self._processes.pop(process.pid, None)

    def of_session(self, session: int) -> list[Process]:
        """The processes that end with a session, oldest first."""
        return [process for process in self._processes.values() if process.session == session]
