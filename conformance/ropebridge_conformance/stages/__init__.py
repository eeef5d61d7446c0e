"""Stages: what each should hold, and how far rounding may move it."""
