"""Gradient-harmonized one-stage object detection."""
