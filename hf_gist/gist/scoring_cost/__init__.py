"""`scoring_cost`: which rows are scored for a price, and what may be selected from them."""
