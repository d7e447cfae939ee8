"""Settings that must be made before torch loads its thread pool."""

from __future__ import annotations

import os

# by default idle threads spin: on busy cores a product by two threads then takes a hundred times as long
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
