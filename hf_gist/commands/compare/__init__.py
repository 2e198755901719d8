"""`hf-gist compare`: does selection pay on this data? Train on each method's rows, and compare."""
