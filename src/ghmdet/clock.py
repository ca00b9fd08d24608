"""When this process began, as near as Python can tell: `import ghmdet` imports this first."""

from __future__ import annotations

import time

STARTED_AT = time.monotonic()
