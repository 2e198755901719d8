"""`hf-gist compare`: train on the rows of each method and compare the test losses."""
