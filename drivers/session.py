"""What a load sets up: a model, and the memory, tiers, sampler and grammars that go with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import attrs
import msgspec

from drivers.arena import Arena
from drivers.backend import Backend
from drivers.copy_cost import measure_copy_cost
from drivers.grammars import Grammars
from drivers.model.grammar import GrammarTokens
from drivers.model.pooler import Pooler
from drivers.model.sampler import Sampler
from drivers.model.transformer import Model
from drivers.ops.kv_pages import KVPages
from drivers.page_table import ArenaError
from drivers.profile import profile_model
from drivers.step_pipeline import StepPipeline
from drivers.tiers import Tiers
from llmos.device import KVFormat, Load, Loaded, Segment, choose_kv_format

__all__ = ["ReportProgress", "Session", "open_session"]

ReportProgress = Callable[[int, int, str], None]  # bytes done, bytes in all, tensor


@attrs.define(eq=False)
class Session:
    """What a load sets up."""

    model: Model
    sampler: Sampler
    pooler: Pooler
    arena: Arena
    pages: KVPages  # of the arena
    tiers: Tiers
    grammars: Grammars
    pipeline: StepPipeline | None  # None: a step is over when it was launched
    opened: contextlib.ExitStack  # closes all of it, the last opened first

    def close(self) -> None:
        """Drop what the tiers hold, and give all memory back."""
        self.opened.close()


def open_session(backend: Backend, load: Load, report: ReportProgress) -> tuple[Session, Loaded]:
    """Load a model and set its memory up; nothing is left open where that fails.

    Raises:
        ModelError, ArenaError, DeviceUnavailable, OSError: what is wrong with the model or the memory.
        Exception: whatever else fails.
    """
    model, quality = backend.load_model(load, report)
    kv, num_frames = plan_memory(backend, load, model)
    profile = profile_model(model, backend, kv, load)
    pages_per_space = kv.num_pages(model.info.max_model_len)
    with contextlib.ExitStack() as opened:
        arena = backend.open_arena(kv, num_frames, load.max_spaces, pages_per_space)
        opened.callback(arena.close)
        pages = model.view_pages(arena.segments, kv, arena.page_index)
        tiers = Tiers(arena, load.host_bytes, load.disk_bytes, load.disk_folder, load.copy_piece_bytes or 0)
        opened.callback(tiers.close)
        profile = msgspec.structs.replace(
            profile,
            host=measure_copy_cost(tiers, "host", tiers.num_host_slots),
            disk=measure_copy_cost(tiers, "disk", tiers.num_disk_slots),
        )
        queue = backend.open_queue(model, pages, load.max_spaces)
        pipeline = None if queue is None else StepPipeline(queue)
        if pipeline is not None:
            opened.callback(pipeline.close)
        info = model.info.model_info(load.name, load.path)
        grammar_tokens = GrammarTokens.open(info.path, info.vocab_size, info.eos_token_ids)
        grammars = Grammars(grammar_tokens)
        opened.callback(grammars.close)
        sampler = Sampler(info.vocab_size)
        session = Session(
            model=model,
            sampler=sampler,
            pooler=Pooler(),
            arena=arena,
            pages=pages,
            tiers=tiers,
            grammars=grammars,
            pipeline=pipeline,
            opened=opened.pop_all(),
        )
    loaded = Loaded(
        model=msgspec.structs.replace(info, weight_bytes=model.weight_bytes),
        kv=kv,
        num_frames=num_frames,
        seconds=0.0,
        quality=quality,
        profile=profile,
        num_host_slots=tiers.num_host_slots,
        num_disk_slots=tiers.num_disk_slots,
        takes_grammars=grammar_tokens is not None,
    )
    return session, loaded


def plan_memory(backend: Backend, load: Load, model: Model) -> tuple[KVFormat, int]:
    """Choose the size of a frame and how many there are. Raises ArenaError."""
    kv_name, segments = model.info.kv, model.segments
    kv = choose_frames(backend, load, kv_name, segments)
    limit = backend.max_frames(load.max_spaces, len(segments))
    if load.pool_bytes is None:
        # More than every space at its longest is of no use, and neither is more than can be mapped.
        num_frames = load.max_spaces * kv.num_pages(model.info.max_model_len) * kv.frames_per_page
        num_frames = min(num_frames, backend.choose_pool_bytes() // kv.frame_bytes)
        num_frames = num_frames if limit is None else min(num_frames, limit)
    else:
        while load.frame_bytes is None and limit is not None and load.pool_bytes // kv.frame_bytes > limit:
            kv = choose_kv_format(kv_name, segments, 2 * kv.frame_bytes)
        num_frames = load.pool_bytes // kv.frame_bytes
    if num_frames < kv.frames_per_page:
        raise ArenaError(
            f"a pool of {num_frames} frames of {kv.frame_bytes} bytes is too small: one page of "
            f"{kv.tokens_per_page} tokens takes {kv.frames_per_page}"
        )
    return kv, num_frames


def choose_frames(backend: Backend, load: Load, kv_name: str, segments: tuple[Segment, ...]) -> KVFormat:
    """A format whose frames the device can map. Raises ArenaError."""
    kv = choose_kv_format(kv_name, segments, load.frame_bytes)
    granularity = backend.granularity_bytes
    if excess := kv.frame_bytes % granularity:
        if load.frame_bytes is not None:
            raise ArenaError(
                f"a frame of {load.frame_bytes} bytes is not a multiple of the {granularity} bytes that "
                "this device maps at once"
            )
        kv = choose_kv_format(kv_name, segments, kv.frame_bytes - excess + granularity)
    return kv
