"""What if nobody takes a driver's words?"""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_full_disk_ends_no_driver() -> None:
    """The words are lost, and the driver goes on."""
    program = "from drivers.note import note; note('a warning'); print('went on', flush=True)"
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", program]
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, check=False)
    assert ran.stdout == b"went on\n"


def test_a_reader_that_has_stopped_holds_no_driver_up() -> None:
    """A pipe that is full takes no more words, and the driver goes on."""
    program = (
        "from drivers.note import note\nfor _ in range(1000): note('x' * 200)\nprint('went on', flush=True)"
    )
    reading, writing = os.pipe()
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=writing, check=False, timeout=60)
    os.close(writing)
    assert ran.stdout == b"went on\n"
    assert set(os.read(reading, 1 << 20).splitlines()) == {b"x" * 200}
    os.close(reading)
