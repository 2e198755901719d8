"""`hf-gist select`: the rows of a pool that align with a target set."""
