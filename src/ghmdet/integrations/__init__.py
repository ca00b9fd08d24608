"""Harmonized losses in other people's models (docs/integrations.md)."""

from ghmdet.integrations.adapters import Adapter, Choice, harmonize, register_adapter, unharmonize
from ghmdet.integrations.mmdet import MMDetGHMC

__all__ = ["Adapter", "Choice", "MMDetGHMC", "harmonize", "register_adapter", "unharmonize"]
