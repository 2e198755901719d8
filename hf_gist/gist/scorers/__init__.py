"""What represents a row when it is scored: one file for each scorer, and the table of all."""
