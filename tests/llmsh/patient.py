"""llmsh as a person has it, but for its patience: on a busy machine the kernel may be late with names."""

from __future__ import annotations

import sys

from shell.llmsh import completion, hints
from shell.llmsh.main import main

PATIENCE_SECONDS = 60.0

if __name__ == "__main__":
    completion.PATIENCE_SECONDS = hints.PATIENCE_SECONDS = PATIENCE_SECONDS
    sys.exit(main())
