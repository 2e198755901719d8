"""Inside a running Trainer: order of the rows, schedule, checks, logs, cards."""
