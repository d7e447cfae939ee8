"""The grammars of a simulated device: that each is compiled before it is used, and followed after that."""

from __future__ import annotations

import attrs
import msgspec

from drivers.sim_memory import ProtocolViolation
from llmos.device import Bind, Compile, Compiled


@attrs.define(eq=False)
class SimGrammars:
    """Texts that stand for grammars: any is one that does not begin with "bad".

    Args:
        compile_seconds: time that each takes; None: the device follows none.
    """

    compile_seconds: float | None
    _sources: dict[int, str] = attrs.field(factory=dict, init=False)  # that were taken, and not forgotten
    _compiled: set[int] = attrs.field(factory=set, init=False)  # the kernel has heard of them

    def compile(self, order: Compile) -> Compiled:
        """Take a grammar; the answer is for `compile_seconds` later, and then for `note_told`."""
        if self.compile_seconds is None or order.id in self._sources:
            raise ProtocolViolation(f"grammar {order.id} is to be compiled; none is followed, or twice")
        self._sources[order.id] = order.source
        problem = "grammar cannot be followed: it is bad" if order.source.startswith("bad") else None
        return Compiled(order.id, self.compile_seconds, problem)

    def note_told(self, answer: Compiled) -> None:
        """The kernel hears of a grammar: from now on it may use it."""
        if answer.problem is None:
            self._compiled.add(answer.id)

    def forget(self, id: int) -> None:
        """Give a grammar up."""
        if id not in self._compiled:
            raise ProtocolViolation(f"grammar {id} is dropped; it was not compiled")
        self._compiled.remove(id)
        del self._sources[id]

    def resolve(self, bind: Bind) -> Bind:
        """The same with its grammar's text, which is what the model goes by."""
        if bind.sampling.grammar is not None:
            raise ProtocolViolation(f"space {bind.asid} bound with the text of a grammar")
        if bind.grammar is None:
            return bind
        if bind.grammar not in self._compiled:
            raise ProtocolViolation(f"space {bind.asid} bound with grammar {bind.grammar}, not compiled")
        sampling = msgspec.structs.replace(bind.sampling, grammar=self._sources[bind.grammar])
        return msgspec.structs.replace(bind, sampling=sampling)
