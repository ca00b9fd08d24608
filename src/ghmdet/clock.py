"""When this process began, as near as Python can tell: the package imports it before anything that takes time."""

from __future__ import annotations

import time

BEGAN = time.monotonic()
