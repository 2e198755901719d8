"""Raw rows to `input_ids` and `labels`, as TRL's `SFTTrainer` does it."""
