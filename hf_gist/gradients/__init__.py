"""Per-sample LoRA gradients: tracked parameters, hooks, passes over a dataset, and a slow reference."""
