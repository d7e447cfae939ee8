"""Actors: a task that owns some state and a mailbox through which others reach it."""

from __future__ import annotations

import abc
from typing import Generic, TypeVar

import trio
from attrs import define, frozen

from llmos.ipc.mailbox import Mailbox, MailboxStatistics

T = TypeVar("T")


@frozen
class ActorStatistics:
    """What every actor can say of itself; actors with more to say extend it."""

    name: str
    mailbox: MailboxStatistics


@define(eq=False)
class Actor(abc.ABC, Generic[T]):
    """The base of actors: a name, a mailbox, and a `run` to be started in a nursery or by a supervisor.

    The mailbox belongs to the actor and not to one call of `run`: senders keep theirs across a restart.
    """

    name: str
    mailbox: Mailbox[T]

    @abc.abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[Mailbox[T]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until the mailbox is closed and empty.

        Calls `task_status.started(self.mailbox)` once it is ready to serve.
        """

    def stop(self) -> None:
        """Ask for an orderly end: what was sent before is still served. Idempotent."""
        self.mailbox.close()

    def statistics(self) -> ActorStatistics:
        """Describe the actor at this moment."""
        return ActorStatistics(name=self.name, mailbox=self.mailbox.statistics())
