"""GAST inside a running Trainer: setup, support gradients, memory, the scale of the loss, and a saved support."""
