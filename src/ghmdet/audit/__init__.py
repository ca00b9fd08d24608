"""Labels that may be wrong: found by their gradient norms, reviewed on a page, mended in a copy."""

from ghmdet.audit.suspicion import KINDS, Label, Suspicion, audit

__all__ = ["KINDS", "Label", "Suspicion", "audit"]
