"""Scorers: the row representations to score by, one file per scorer, and the table of all scorers."""
