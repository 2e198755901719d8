"""GAST: selects, for each layer, the samples of a batch that update it."""
