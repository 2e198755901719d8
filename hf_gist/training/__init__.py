"""Integration with a running Trainer: row order, schedule, checks, logs, model cards."""
