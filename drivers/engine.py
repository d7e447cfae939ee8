"""What a driver does: loads, steps, copies and grammars, on one device. It goes on whatever fails."""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Sequence

import attrs
import msgspec

from drivers.backend import Backend, DeviceUnavailable
from drivers.model.errors import ModelError
from drivers.page_table import ArenaError
from drivers.session import ReportProgress, Session, open_session
from drivers.step_runner import StepRunner
from llmos.device import (
    Compile,
    Compiled,
    Copy,
    CopyDone,
    CopyFault,
    Failed,
    Load,
    Loaded,
    Step,
    StepDone,
)  # fmt: skip

__all__ = ["Engine"]


@attrs.define(eq=False)
class Engine:
    """Carries out what the kernel asks of a device. It has a model from a load to the next, or to `close`."""

    backend: Backend
    debug: bool = attrs.field(factory=lambda: os.environ.get("LLMOS_DEBUG") == "1")
    _steps: StepRunner | None = attrs.field(default=None, init=False)  # of the loaded model

    @property
    def _session(self) -> Session | None:
        return None if self._steps is None else self._steps.session

    def load(self, load: Load, report: ReportProgress) -> Loaded | Failed:
        """Load a model, in place of the one that was loaded before. Never raises."""
        self.close()
        started = time.perf_counter()
        try:
            session, loaded = open_session(self.backend, load, report)
        except (ModelError, ArenaError, DeviceUnavailable, OSError) as error:
            return Failed(str(error))
        except Exception as error:
            traceback.print_exc()
            return Failed(f"{type(error).__name__}: {error}")
        self._steps = StepRunner(session, self.backend, self.debug)
        # what lives now lives on: collections in the step loop need not look at it
        gc.collect()
        gc.freeze()
        return msgspec.structs.replace(loaded, seconds=time.perf_counter() - started)

    def run_step(self, step: Step) -> StepDone:
        """Carry out a step, and wait for it; see `begin_step`. No other step is in flight."""
        answers = self.begin_step(step)
        assert self._steps is not None
        return [*answers, *self._steps.finish_all()][-1]

    def begin_step(self, step: Step) -> list[StepDone]:
        """Apply edits in order, run the rows as one batch, and sample.

        Where the device does not wait for the host, the step may only be launched: `collect` answers it when
        it is over.

        Returns:
            Answers that are there now, in order: of steps before this one, and its own if it has ended.

        Raises:
            RuntimeError: no model is loaded.
            Exception: whatever says that the device is beyond use.
        """
        if self._steps is None:
            raise RuntimeError(f"step {step.id} came before a model was loaded")
        return self._steps.begin(step)

    # --- what goes on beside the steps -------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """True while a copy or a step runs, or a grammar is compiled: there will be something to collect."""
        if (steps := self._steps) is None:
            return False
        tiers, grammars = steps.session.tiers, steps.session.grammars
        return bool(steps.num_in_flight or tiers.num_running or grammars.num_compiling)

    @property
    def wants_step(self) -> bool:
        """True while a step runs, and another one could be launched behind it."""
        return self._steps is not None and self._steps.wants_step

    def wait_for(self) -> tuple[tuple[int, ...], float | None]:
        """Descriptors, one of which is readable when there is something to collect; and seconds to wait."""
        assert self._session is not None
        tiers, grammars, pipeline = self._session.tiers, self._session.grammars, self._session.pipeline
        steps = () if pipeline is None else (pipeline.fileno(),)
        return (tiers.fileno(), grammars.fileno(), *steps), grammars.seconds_left()

    def collect(self) -> list[StepDone | CopyDone | Compiled]:
        """Since the last call: steps and copies that have ended, grammars that are ready or never will be.

        Raises:
            Exception: the device is beyond use.
        """
        if not self.is_busy or (steps := self._steps) is None:
            return []
        return [*steps.collect(), *steps.session.tiers.collect(), *steps.session.grammars.collect()]

    def begin_grammars(self, orders: Sequence[Compile]) -> None:
        """Begin to compile grammars. Raises RuntimeError: no model is loaded."""
        session = self._session
        for order in orders:
            if session is None:
                raise RuntimeError(f"grammar {order.id} came before a model was loaded")
            session.grammars.begin(order)

    @property
    def steps_hold_up(self) -> bool:
        """True where a step is over when `begin_step` returns, and copies may be asked for meanwhile."""
        session = self._session
        return session is not None and session.pipeline is None and session.tiers.num_slots_below > 0

    def copy_fds(self) -> tuple[int, ...]:
        """Descriptors, one of which is readable when a copy may have ended."""
        return () if self._session is None else (self._session.tiers.fileno(),)

    def begin_copies(self, copies: Sequence[Copy]) -> list[CopyDone]:
        """Begin copies, and wait for those that are over in a moment. May run beside `begin_step`.

        Returns:
            Copies that have ended, these or others.

        Raises:
            Exception: the device is beyond use.
        """
        done = [refused for copy in copies if (refused := self.begin_copy(copy)) is not None]
        if self._session is not None:
            self._session.tiers.finish_small()
            done += self._session.tiers.collect()
        return done

    def forget_grammar(self, id: int) -> None:
        """Drop a compiled grammar; spaces that follow it go on."""
        if self._session is not None:
            self._session.grammars.forget(id)

    def begin_copy(self, copy: Copy) -> CopyDone | None:
        """Begin a copy; None: it is under way. It sees what the steps before it write."""
        if self._session is None:
            message = "there is no model, and so no memory"
            return CopyDone(
                copy.id, 0.0, (), tuple(CopyFault(i, message) for i in range(len(copy.source.slots)))
            )
        return self._session.tiers.begin(copy)

    def finish(self) -> list[StepDone | CopyDone]:
        """Wait for the steps and copies that were begun. Returns what `collect` has not returned yet."""
        if (steps := self._steps) is None:
            return []
        answers, tiers = steps.finish_all(), steps.session.tiers
        tiers.wait()
        return [*answers, *tiers.collect()]

    def close(self) -> None:
        """Unload the model, drop what the tiers hold, and give all memory back. Idempotent."""
        if (session := self._session) is not None:
            self._steps = None
            session.close()
            gc.unfreeze()
