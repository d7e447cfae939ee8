"""Handlers of the image family."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
import trio

from llmos.device import KVFormat, Loaded
from llmos.kernel.asking import ask
from llmos.kernel.calls_process import spawned
from llmos.kernel.checks import check_grammar_room, check_label, check_memory
from llmos.kernel.image_store import Entry, check_name
from llmos.kernel.session import Session
from llmos.kernel.system import System
from llmos.kernel.tenants import Tenant
from llmos.mm.page_copy import CopyState, PageCopy
from llmos.proc.image import Image, explain_mismatch, platform_of
from llmos.proc.pcb import Process
from llmos.sched import messages
from llmos.sched.core import Core
from syscalls.codec import Answer
from syscalls.errno import Errno, SyscallError
from syscalls.image import (
    Checkpoint,
    Checkpointed,
    ImageInfo,
    ImageList,
    Images,
    RemoveImage,
    Restore,
)  # fmt: skip
from syscalls.system import Done

BYTES_PER_TOKEN = 8  # of a description, about: a token id in the history, and in the output


def checkpoint(system: System, session: Session, call_id: int, body: Checkpoint) -> Answer | None:
    """See syscalls.image.Checkpoint."""
    process = session.process(body.pid)
    check_name(body.name)
    process.check_lives()
    system.errands.start(session, call_id, partial(_checkpoint, system, process, body), is_lasting=True)
    return None


async def _checkpoint(system: System, process: Process, body: Checkpoint) -> Answer:
    began = trio.current_time()
    core, store, in_thread = system.core_of(process), system.images, system.errands.run_blocking
    async with system.saving:
        num_bytes = _estimate_bytes(core, process)
        begin = partial(store.begin, process.tenant, body.name, num_bytes, overwrite=body.overwrite)
        draft = await in_thread(begin)
        try:
            image = await _save(core, process, draft.path)
            size = await in_thread(store.commit, draft, process.tenant, image)
        finally:
            with trio.CancelScope(shield=True):
                await in_thread(store.discard, draft)
    num_tokens, num_saved = len(image.process.tokens), image.process.num_saved_tokens
    text = f"process {process.pid} saved as image {body.name}: {num_tokens} tokens, {size} bytes"
    system.events.record("image", text, pid=process.pid)
    return Checkpointed(body.name, size, num_tokens, num_saved, trio.current_time() - began)


def _estimate_bytes(core: Core, process: Process) -> int:
    assert core.loaded is not None
    kv, num_tokens = core.loaded.kv, len(process.tokens)
    return kv.num_pages(num_tokens) * kv.page_bytes + num_tokens * BYTES_PER_TOKEN


async def _save(core: Core, process: Process, path: Path) -> Image:
    """Have a process's memory written to a file, and wait for the end of it."""
    outcome: Image | SyscallError = await ask(core, partial(messages.Save, process, str(path)))
    if isinstance(outcome, SyscallError):
        raise outcome
    return outcome


def restore(system: System, session: Session, call_id: int, body: Restore) -> Answer | None:
    """See syscalls.image.Restore."""
    check_name(body.name)
    tenant = _tenant_of(session, body.tenant)
    errand = partial(_restore, system, session, tenant, body)
    system.errands.start(session, call_id, errand, is_lasting=False)
    return None


async def _restore(system: System, session: Session, tenant: str, body: Restore) -> Answer:
    check_label(body.label)
    image, path = await system.errands.run_blocking(system.images.read, tenant, body.name)
    await _check_grammar(system, image, body.name)
    await trio.lowlevel.checkpoint()  # the session may have ended; from here on nothing waits
    system.check_open()
    core = system.place(_find_model(system, image))
    assert core.loaded is not None
    _check_fit(core, system.tenants.of(tenant), image, body.name)
    process = _make_process(system, core, session, tenant, image, body)
    core.mailbox.send_nowait(messages.Restore(process, _pages_of(image, path)))
    text = f"process {process.pid} restored from image {body.name}: {len(process.tokens)} tokens"
    system.events.record("image", text, pid=process.pid)
    return spawned(system, [process])


def _find_model(system: System, image: Image) -> str | None:
    """The served model that an image goes on with, by name; None: none fits, and the default one says why."""
    loaded = [core.loaded for core in system.cores.values() if core.loaded is not None]
    fitting = [one.model.name for one in loaded if not explain_mismatch(image.platform, platform_of(one))]
    return image.model if image.model in fitting else next(iter(fitting), None)


async def _check_grammar(system: System, image: Image, name: str) -> None:
    """See to it that a grammar is sound here and now: another version may have made the image.

    Raises SyscallError: ENOEXEC, with the part at fault; EAGAIN, it was not read in time.
    """
    if (grammar := image.process.sampling.grammar) is None:
        return
    try:
        await system.grammars.check(grammar, system.errands.run_blocking)
    except SyscallError as error:
        if error.errno is not Errno.EINVAL:
            raise
        raise SyscallError(Errno.ENOEXEC, f"image {name}: {error.message}") from error


def _check_fit(core: Core, tenant: Tenant, image: Image, name: str) -> None:
    """Raise SyscallError unless a device and a tenant can go on with an image: ENOEXEC, ENOMEM."""
    loaded = core.loaded
    assert loaded is not None
    if (problem := explain_mismatch(image.platform, platform_of(loaded))) is not None:
        raise SyscallError(Errno.ENOEXEC, f"image {name} {problem}")
    process = image.process
    if process.sampling.grammar is not None and not loaded.takes_grammars:
        raise SyscallError(Errno.ENOEXEC, f"image {name} follows a grammar; {core.name} cannot")
    check_grammar_room(core, process.sampling.grammar)
    if process.status is not None:
        return  # the next write says how much more there will be
    check_memory(core, tenant, process.turn_start + process.max_tokens, of=f"image {name}: ")


def _make_process(
    system: System, core: Core, session: Session, tenant: str, image: Image, body: Restore
) -> Process:
    """Make the process of an image, in the table, in state EMBRYO. Raises SyscallError: EAGAIN, EDQUOT."""
    saved = image.process
    now = trio.current_time()
    (pid,) = system.table.new_pids(1)
    system.tenants.of(tenant).admit(0 if saved.status is not None else 1, saved.num_uncharged)
    assert core.loaded is not None
    process = Process(
        pid=pid,
        tenant=tenant,
        session=None if body.detached else session.id,
        label=image.label if body.label is None else body.label,
        user=saved.user,
        model=core.loaded.model.name,
        device=core.name,
        sampling=saved.sampling,
        stop_tokens=frozenset(saved.stop_tokens),
        min_tokens=saved.min_tokens,
        interactive=saved.interactive,
        auto_reap=body.auto_reap,
        spawned_at=now,
        turn_started_at=now,
        arrival=pid,
        nice=saved.nice,
        deadline_seconds=saved.deadline_seconds,
        cache_salt=saved.cache_salt,
        pin_seconds=min(saved.pin_seconds, core.memory.max_pin_seconds),
        tokens=list(saved.tokens),
        output=list(saved.output),
        logprobs=list(saved.logprobs),
        mu=saved.mu,
        num_to_score=saved.num_to_score,
        prompt_logprobs=list(saved.prompt_logprobs),
        pooling=saved.pooling,
        is_whole=not core.loaded.model.generates,
        num_summed=saved.num_summed,
        total=saved.total,
        turn_start=saved.turn_start,
        max_tokens=saved.max_tokens,
        status=saved.status,
        num_prompt_tokens=saved.num_prompt_tokens,
        num_uncharged=saved.num_uncharged,
    )
    system.enter(process)
    return process


def _pages_of(image: Image, path: Path) -> list[PageCopy]:
    """Where a process's pages are in its file."""
    kv: KVFormat = image.platform.kv
    size, segments = kv.tokens_per_page, kv.frames_per_page
    return [
        PageCopy(
            "file",
            tuple(range(vpn * segments, (vpn + 1) * segments)),
            min(size, image.process.num_saved_tokens - vpn * size),
            str(path),
            checksums,
            CopyState.WHOLE,
        )
        for vpn, checksums in enumerate(image.process.checksums)
    ]


def images(system: System, session: Session, call_id: int, body: Images) -> Answer | None:
    """See syscalls.image.Images."""
    tenant = _tenant_of(session, body.tenant)
    system.errands.start(session, call_id, partial(_list_images, system, tenant), is_lasting=False)
    return None


async def _list_images(system: System, tenant: str) -> Answer:
    entries = await system.errands.run_blocking(system.images.entries, tenant)
    loaded = [core.loaded for core in system.cores.values() if core.loaded is not None]
    return ImageList(tuple(_describe(entry, loaded) for entry in entries))


def _describe(entry: Entry, loaded: list[Loaded]) -> ImageInfo:
    info = ImageInfo(entry.name, entry.num_bytes, entry.saved_at, problem=entry.problem)
    if (summary := entry.summary) is None:
        return info
    problems = [explain_mismatch(summary.platform, platform_of(one)) for one in loaded]
    counts = summary.process
    return msgspec.structs.replace(
        info,
        saved_at=summary.saved_at,
        num_tokens=counts.num_prompt_tokens + len(counts.output),
        num_saved_tokens=counts.num_saved_tokens,
        num_output_tokens=len(counts.output),
        interactive=counts.interactive,
        model=summary.model,
        label=summary.label,
        problem=(problems[0] or "") if problems and None not in problems else "",
    )


def remove_image(system: System, session: Session, call_id: int, body: RemoveImage) -> Answer | None:
    """See syscalls.image.RemoveImage."""
    check_name(body.name)
    tenant = _tenant_of(session, body.tenant)
    system.errands.start(session, call_id, partial(_remove, system, tenant, body.name), is_lasting=False)
    return None


async def _remove(system: System, tenant: str, name: str) -> Answer:
    await system.errands.run_blocking(system.images.remove, tenant, name)
    return Done()


def _tenant_of(session: Session, tenant: str | None) -> str:
    """Whose images a call is about. Raises SyscallError EPERM."""
    if tenant is None or tenant == session.tenant:
        return session.tenant
    session.check_admin("images of other tenants are")
    return tenant
