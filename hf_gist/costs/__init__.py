"""Costs of a run (operations, seconds, memory) and its manifest."""
