"""Measures of why neural networks generalize."""

__version__ = "0.1.0"
