"""Selections inside a running Trainer."""
