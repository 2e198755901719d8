"""Pure functions on tensors, without models, files or processes. Imports torch, numpy and the standard library only."""
