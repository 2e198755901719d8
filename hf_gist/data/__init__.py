"""Rows of datasets: reading, tokenizing with labels, batches, duplicates, and where they came from."""
