"""Arithmetic on tensors: no model, no file, no process. Imports torch, numpy and the standard library only."""
