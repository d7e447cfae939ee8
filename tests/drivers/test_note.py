"""What if nobody takes a driver's words?"""

from __future__ import annotations

import subprocess
import sys


def test_a_full_disk_ends_no_driver() -> None:
    """The words are lost, and the driver goes on."""
    program = "from drivers.note import note; note('a warning'); print('went on', flush=True)"
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", program]
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, check=False)
    assert ran.stdout == b"went on\n"
