"""Writes docs/llmsh.md: `python -m shell.llmsh.write_manual`."""

from __future__ import annotations

import sys

from shell.llmsh.commands import TABLE
from shell.llmsh.manual import write_page

if __name__ == "__main__":
    sys.stdout.write(write_page(TABLE))
