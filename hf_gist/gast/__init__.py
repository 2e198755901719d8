"""GAST: per layer, the samples of a batch that may update it."""
