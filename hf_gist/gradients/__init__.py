"""Per-sample LoRA gradients: which parameters, the hooks, the passes over a dataset, the slow oracle."""
