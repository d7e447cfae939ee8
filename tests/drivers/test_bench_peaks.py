"""The peaks are measured over what they say they are."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from native._cpu import ffi, lib

from drivers.bench import peaks


def test_probes_do_what_they_say() -> None:
    """Arithmetic probes count the operations that they do, and reading sums what is there."""
    assert lib.llmos_probe_int8(4) == 4 * lib.llmos_probe_int8(1)
    assert lib.llmos_probe_fp32(4) == 4 * lib.llmos_probe_fp32(1)
    data = np.arange(4096, dtype=np.uint64)
    assert lib.llmos_probe_read(ffi.cast("void *", data.ctypes.data), data.nbytes) == data.sum()


@pytest.mark.parametrize("is_integer", [True, False])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_peaks(is_integer: bool, num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both peaks are positive, whatever the number of threads that share a stream that they do not divide."""
    monkeypatch.setattr(peaks, "PROBE_ITERATIONS", 10_000)
    found = peaks.measure_peaks(is_integer, num_threads, peaks.make_stream((1 << 20) + 5000))
    assert found.read_bytes_per_second > 0
    assert found.operations_per_second > 0


def test_cache_sets_fit_the_stream() -> None:
    """Each thread has a set of its own, and sets beyond the stream are refused, not shared."""
    stream = peaks.make_stream(1 << 20)
    assert peaks.measure_cache_read(512 << 10, 2, stream) > 0
    with pytest.raises(ValueError, match="3 sets"):
        peaks.measure_cache_read(512 << 10, 3, stream)
    with pytest.raises(ValueError, match="0 bytes"):
        peaks.measure_cache_read(100, 1, stream)


def test_together_is_at_the_same_time() -> None:
    """Tasks that wait for each other end: they run at once, and all have ended when the time is taken."""
    barrier, ended = threading.Barrier(3, timeout=120), []

    def task() -> None:
        barrier.wait()
        ended.append(True)

    assert peaks.seconds_together([task] * 3) > 0
    assert len(ended) == 3
