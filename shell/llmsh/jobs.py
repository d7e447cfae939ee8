"""Processes that the shell started: their output, shown once and in order, and their end."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import trio

from shell.llmsh.errors import CommandError, UsageError
from shell.llmsh.pipe import TextPipe
from syscalls.process import ExitStatus, Output
from syscalls.text.detokenizer import IncrementalDecoder

MAX_PID_DIGITS = 18


def parse_pid(word: str) -> int:
    """Read a process id. Raises UsageError."""
    if not (word.isascii() and word.isdecimal() and len(word) <= MAX_PID_DIGITS):
        raise UsageError(f"{word!r} is no process id: a number, or %N for a job")
    return int(word)


@attrs.define(eq=False)
class Sample:
    """The output of one process, as far as it was shown."""

    pid: int
    seed: int
    decoder: IncrementalDecoder
    offset: int = 0  # output tokens taken so far
    text: str = ""  # of those
    end: ExitStatus | None = None  # once it has ended, for whatever reason

    def take(self, output: Output) -> str:
        """Take what a read returned, and return its text. The end token is not part of it."""
        tokens = output.tokens
        self.offset = output.offset + len(tokens)
        if output.end is not None and output.end.stop_token is not None and tokens:
            tokens = tokens[:-1]
        text = self.decoder.push(tokens)
        if output.end is not None:
            self.end = output.end
            text += self.decoder.flush()
        self.text += text
        return text


@attrs.define(eq=False)
class Job:
    """What one `run` or `fork` started."""

    samples: list[Sample]
    command: str
    number: int = 0  # 0: in the foreground, not in the table
    is_foreground: bool = False
    is_watched: bool = False  # a task waits for its end
    ends: dict[int, ExitStatus] = attrs.field(factory=dict)  # by pid, seen by whoever saw them first

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes."""
        return tuple(sample.pid for sample in self.samples)

    @property
    def has_ended(self) -> bool:
        """True when all its processes have."""
        return len(self.ends) == len(self.samples)

    @property
    def outcome(self) -> str:
        """How it ended, as `jobs` says it."""
        reasons = dict.fromkeys(end.reason for end in self.ends.values())
        return f"Done ({', '.join(reasons)})"


@attrs.define(eq=False)
class PipeJob:
    """Commands joined by pipes, or with files to read and write: one task for each, and one job for all.

    Attributes:
        command: as it was written.
        output: of the last command; nothing comes when that goes to a file.
        processes: that its commands have started, in order.
        scope: what cancels it.
        status: its exit code, once it is done.
        is_stopped: processes that its commands start now are to wait for `fg` or `bg`.
        is_foreground: its end is seen there, and need not be told.
    """

    command: str
    output: TextPipe
    number: int = 0
    processes: list[int] = attrs.field(factory=list)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    done: trio.Event = attrs.field(factory=trio.Event)
    status: int | None = None
    is_stopped: bool = False
    is_foreground: bool = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes, those that have ended too."""
        return tuple(self.processes)

    @property
    def has_ended(self) -> bool:
        """True when all its commands have."""
        return self.status is not None

    @property
    def outcome(self) -> str:
        """How it ended, as `jobs` says it."""
        return f"Done (exit code {self.status})" if self.status else "Done"


AnyJob = Job | PipeJob


@attrs.define(eq=False)
class JobTable:
    """Jobs by number. The highest numbers are the newest."""

    _jobs: dict[int, AnyJob] = attrs.field(factory=dict)
    _session: object = None  # that their processes live in
    newest_pid: int | None = None  # of the last job that went to the background

    def live_in(self, session: object) -> None:
        """Forget the jobs of an earlier session: another kernel may give their pids to other processes."""
        if session is not self._session:
            if self._session is not None:
                self.clear()
            self._session = session

    def __iter__(self) -> Iterator[AnyJob]:
        return iter(tuple(self._jobs.values()))

    def add(self, job: AnyJob) -> None:
        """Give a job a number, if it has none yet. Mutates it."""
        if not job.number:
            job.number = max(self._jobs, default=0) + 1
            self._jobs[job.number] = job
        self.newest_pid = job.pids[-1] if job.pids else self.newest_pid

    def remove(self, job: AnyJob) -> None:
        """Forget a job."""
        self._jobs.pop(job.number, None)
        job.number = 0

    def clear(self) -> None:
        """Forget all jobs."""
        for job in self:
            self.remove(job)

    def of_pid(self, pid: int) -> AnyJob | None:
        """Return the job that a process belongs to."""
        return next((job for job in self._jobs.values() if pid in job.pids), None)

    def find(self, word: str | None) -> AnyJob:
        """Return the job named by `%N` or a pid; None names the newest. Raises CommandError, UsageError."""
        if word is None:
            if not self._jobs:
                raise CommandError("there is no job; 'run PROMPT &' starts one")
            return self._jobs[max(self._jobs)]
        if word.startswith("%"):
            job = self._jobs.get(int(word[1:])) if word[1:].isascii() and word[1:].isdecimal() else None
        else:
            job = self.of_pid(parse_pid(word))
        if job is None:
            there_are = ", ".join(f"%{number}" for number in self._jobs)
            hint = f"there are {there_are}" if there_are else "'run PROMPT &' starts one"
            raise CommandError(f"no job {word!r}; {hint}")
        return job

    def resolve(self, word: str) -> tuple[int, ...]:
        """Return the processes named by a pid or by `%N`. Raises CommandError, UsageError."""
        if not word.startswith("%"):
            return (parse_pid(word),)
        pids = self.find(word).pids
        if not pids:
            raise CommandError(f"job {word} has no process at the moment")
        return pids

    def resolve_one(self, word: str) -> int:
        """Return the process named by a pid or by `%N`. Raises CommandError, UsageError."""
        pids = self.resolve(word)
        if len(pids) > 1:
            raise UsageError(f"job {word} has several processes; name one: {', '.join(map(str, pids))}")
        return pids[0]
