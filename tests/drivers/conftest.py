"""Settings that must be made before torch loads its thread pool, and before triton kernels are decorated."""

from __future__ import annotations

import os
from importlib.util import find_spec

# by default idle threads spin: on busy cores a product by two threads then takes a hundred times as long
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# no GPU to compile for: kernels run in triton's interpreter, which is chosen where they are decorated;
# without triton a stand-in for a GPU takes torch's operations
if find_spec("triton") is not None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
