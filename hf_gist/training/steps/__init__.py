"""The steps of a run: their number, rows and learning rates, and the check of the rows."""
