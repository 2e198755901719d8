"""Pure functions on tensors: no models, files or processes. Imports torch, numpy and the standard library only."""
