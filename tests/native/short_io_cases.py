"""Run by test_short_io.py in a process of its own, where vectors to files fail in every way there is."""

from __future__ import annotations

import ctypes
import errno
from contextlib import ExitStack

from hypothesis import given, settings
from hypothesis import strategies as st

from native.checksum import crc32c
from native.transfer import CHECKSUM, Transfer, TransferEngine
from tests.native.test_transfer import Place, run, slot_lists

SHIM = ctypes.CDLL(None)  # loaded before everything
ROUTES = [("memory", "file"), ("file", "memory"), ("file", "file")]


@settings(deadline=None, max_examples=150)
@given(
    kinds=st.sampled_from(ROUTES),
    slot_bytes=st.sampled_from([1, 100, 4096, 70_000]),
    lists=slot_lists(),
    bad=st.sets(st.tuples(st.integers(0, 23), st.floats(0, 1, exclude_max=True)), max_size=5),
    wrong=st.sets(st.integers(0, 23)),
)
def check_every_slot(
    kinds: tuple[str, str],
    slot_bytes: int,
    lists: tuple[int, list[int], list[int]],
    bad: set[tuple[int, float]],
    wrong: set[int],
) -> None:
    """A slot with a bad byte or a wrong checksum is at fault alone, wherever in a vector it is."""
    num_slots, sources, targets = lists
    positions = [int((slot + part) * slot_bytes) for slot, part in bad]
    bad_slots = {position // slot_bytes for position in positions}
    with ExitStack() as closing, TransferEngine() as engine:
        source = Place(kinds[0], num_slots, slot_bytes, 1, closing)
        target = Place(kinds[1], num_slots, slot_bytes, 101, closing)
        SHIM.short_io_set_bad((ctypes.c_uint64 * len(positions))(*positions), len(positions))
        true = [crc32c(source.slot(slot)) for slot in sources]
        ended = run(
            engine,
            Transfer(
                source=source.end, target=target.end, slot_bytes=slot_bytes, source_slots=sources,
                target_slots=targets, expected=[sum_ ^ (i in wrong) for i, sum_ in enumerate(true)],
                wants_checksums=True,
            ),
        )  # fmt: skip
        errors: dict[int, int] = {}
        for i, (source_slot, target_slot) in enumerate(zip(sources, targets, strict=True)):
            is_bad = (kinds[0] == "file" and source_slot in bad_slots) or (
                kinds[1] == "file" and target_slot in bad_slots
            )
            if i in wrong and (kinds[0] == "memory" or not is_bad):  # never written, so never refused
                errors[i] = CHECKSUM
            elif is_bad:
                errors[i] = errno.EIO
        assert ended.errors == errors
        found = target.read()
        for i, (source_slot, target_slot) in enumerate(zip(sources, targets, strict=True)):
            if i in errors:  # means nothing, but must not hide what is beside it
                found[target_slot * slot_bytes : (target_slot + 1) * slot_bytes] = target.slot(target_slot)
            else:
                assert ended.checksums[i] == true[i]
                target.put(target_slot, source.slot(source_slot))
        assert found == target.shadow


if __name__ == "__main__":
    check_every_slot()
    counts = (ctypes.c_uint64 * 3)()
    SHIM.short_io_count(counts)
    print(*counts)
