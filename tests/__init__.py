"""Tests, in folders that mirror the package; `helpers` makes the tiny models and data."""

from pathlib import Path


ROOT = Path(__file__).parents[1]
"""Of the checkout."""
