"""Seeing attention patterns: a picture, or one page to look round in."""

from ropebridge.plots.panels import Panel, PlotError
from ropebridge.plots.plot import plot_patterns

__all__ = ["Panel", "PlotError", "plot_patterns"]
