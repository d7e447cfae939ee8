"""The engine of an encoder: takes texts whole, and makes their vectors. No keys and values, nothing to copy.

It speaks the driver protocol like any other: spaces are reserved and released, a text is one row. What stands
for memory is a place for each text, counted by the bytes of its token ids.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
import torch

from drivers.encoder.bert import Bert, ReportProgress
from drivers.encoder.config import read_encoder_config
from drivers.model.checkpoint import Checkpoint
from drivers.model.embedding_config import describe_embedding
from drivers.model.errors import ModelError
from drivers.model.pooler import finish_vector
from drivers.note import note
from drivers.step_results import StepResults
from llmos.device import (
    Bind,
    Compile,
    Compiled,
    Copy,
    CopyDone,
    CopyFault,
    EmbeddingInfo,
    Failed,
    KVFormat,
    Load,
    Loaded,
    ModelInfo,
    Pooling,
    Release,
    Row,
    Segment,
    Step,
    StepDone,
)  # fmt: skip
from native.variant import best_variant

__all__ = ["EncoderEngine"]

POOLINGS = ("mean", "cls")
TOKEN_BYTES = 4


@attrs.define(eq=False)
class EncoderEngine:
    """Runs steps of an encoder on the processor."""

    _model: Bert | None = attrs.field(default=None, init=False)
    _max_input_tokens: int = attrs.field(default=0, init=False)
    _poolings: dict[int, Pooling] = attrs.field(factory=dict, init=False)  # by asid

    def load(self, load: Load, report: ReportProgress) -> Loaded | Failed:
        """Load an encoder, in place of the one that was loaded before. Never raises."""
        self.close()
        started = time.perf_counter()
        try:
            model, info = _open(load, report)
        except (ModelError, OSError) as error:
            return Failed(str(error))
        except Exception as error:
            traceback.print_exc()
            return Failed(f"{type(error).__name__}: {error}")
        self._model, self._max_input_tokens = model, info.max_model_len
        gc.collect()
        gc.freeze()
        return Loaded(
            model=info,
            kv=_places(info.max_model_len),
            num_frames=load.max_spaces,
            seconds=time.perf_counter() - started,
        )

    def begin_step(self, step: Step) -> list[StepDone]:
        """Carry a step out; its answer. See `run_step`."""
        return [self.run_step(step)]

    def run_step(self, step: Step) -> StepDone:
        """Make the vectors of a step's rows, one text after the other.

        Raises:
            RuntimeError: no model is loaded.
        """
        if self._model is None:
            raise RuntimeError(f"step {step.id} came before a model was loaded")
        started = time.perf_counter()
        results = StepResults(len(step.rows))
        for edit in step.edits:
            match edit:
                case Bind(asid, pooling=Pooling() as pooling):
                    self._poolings[asid] = pooling
                case Release(asid):
                    self._poolings.pop(asid, None)
        good: dict[int, Row] = {}
        for index, row in enumerate(step.rows):
            if (message := self._explain_bad_row(row)) is not None:
                results.faults[index] = message
            else:
                good[index] = row
        if good:
            self._make_vectors(self._model, good, results)
        return results.done(step.id, time.perf_counter() - started)

    def _explain_bad_row(self, row: Row) -> str | None:
        """Say why a row cannot run, or None."""
        assert self._model is not None
        vocab_size = self._model.config.vocab_size
        if row.asid not in self._poolings:
            return f"space {row.asid} makes no vector, and this device does nothing else"
        if row.start or not row.pool or not 1 <= len(row.tokens) <= self._max_input_tokens:
            end = row.start + len(row.tokens)
            return f"positions {row.start} to {end} are not one whole text of 1 to {self._max_input_tokens}"
        if min(row.tokens) < 0 or max(row.tokens) >= vocab_size:
            return f"a token id is outside the vocabulary of {vocab_size}"
        return None

    def _make_vectors(self, model: Bert, good: dict[int, Row], results: StepResults) -> None:
        """Run good rows, by index; one whose numbers are not finite fails alone."""
        try:
            found = model.run([row.tokens for row in good.values()])
        except Exception as error:  # memory, say: the next step is another matter
            traceback.print_exc()
            results.faults.update(dict.fromkeys(good, f"{type(error).__name__}: {error}"))
            return
        for (index, row), states in zip(good.items(), found, strict=True):
            pooling = self._poolings[row.asid]
            try:
                results.vectors[index] = _pool(model, pooling, states)
            except ValueError as error:
                results.faults[index] = str(error)

    @property
    def is_busy(self) -> bool:
        """Whether something is done beside the steps. Never."""
        return False

    @property
    def wants_step(self) -> bool:
        """Whether a step can be launched behind one that runs. Never: none runs on when it was begun."""
        return False

    def wait_for(self) -> tuple[tuple[int, ...], float | None]:
        """What to wait for while that is done: nothing."""
        return (), None

    def begin_grammars(self, orders: Sequence[Compile]) -> None:
        """Refuse grammars. Raises RuntimeError: there is one, and an encoder writes nothing."""
        if orders:
            raise RuntimeError(f"grammar {orders[0].id} came to an encoder")

    def forget_grammar(self, id: int) -> None:
        """Drop a grammar: there is none."""

    def begin_copy(self, copy: Copy) -> CopyDone:
        """Refuse a copy."""
        faults = tuple(CopyFault(i, "an encoder keeps nothing") for i in range(len(copy.source.slots)))
        note(f"copy {copy.id} to an encoder")
        return CopyDone(copy.id, 0.0, (), faults)

    @property
    def steps_hold_up(self) -> bool:
        """See Engine; there are no copies."""
        return False

    def copy_fds(self) -> tuple[int, ...]:
        """See Engine."""
        return ()

    def begin_copies(self, copies: Sequence[Copy]) -> list[CopyDone]:
        """Refuse copies."""
        return [self.begin_copy(copy) for copy in copies]

    def collect(self) -> list[CopyDone | Compiled]:
        """What was done beside the steps: nothing."""
        return []

    def finish(self) -> list[CopyDone]:
        """What was begun: nothing that is not over."""
        return []

    def close(self) -> None:
        """Unload the model. Idempotent."""
        if self._model is not None:
            self._model.close()
            self._model = None
            gc.unfreeze()
        self._poolings.clear()


def _open(load: Load, report: ReportProgress) -> tuple[Bert, ModelInfo]:
    folder = Path(load.path)
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder: an embedding model is a Hugging Face folder")
    config = read_encoder_config(folder)
    max_len = load.max_model_len or config.max_input_tokens
    if max_len > config.max_positions:
        raise ModelError(f"max_model_len {max_len} is outside 1 to {config.max_positions}, the model's limit")
    embedding = EmbeddingInfo(1, ("score",))
    if not config.scores_pairs:
        embedding = describe_embedding(folder, config.hidden_size, POOLINGS)
    model = Bert.open(folder, config, report, torch.get_num_threads())
    info = ModelInfo(
        name=load.name,
        path=str(folder),
        architecture=config.architecture,
        hash=Checkpoint.open(folder).content_hash(),
        vocab_size=config.vocab_size,
        max_model_len=max_len,
        eos_token_ids=(),
        dtype="fp32",
        num_parameters=model.num_parameters,
        kernels=f"native-{best_variant()}",
        weight_bytes=model.weight_bytes,
        generates=False,
        embedding=embedding,
    )
    return model, info


def _pool(model: Bert, pooling: Pooling, states: npt.NDArray[np.float32]) -> bytes:
    """What a text comes to. Raises ValueError: it is not finite."""
    if pooling.kind == "score":
        return finish_vector(model.score(states), is_normal=False)
    vector = states[0] if pooling.kind == "cls" else states.mean(axis=0, dtype=np.float32)
    return finish_vector(vector, is_normal=pooling.normalise)


def _places(max_len: int) -> KVFormat:
    """A page for each text."""
    return KVFormat("none", (Segment("tokens", TOKEN_BYTES),), TOKEN_BYTES * max_len, max_len)
