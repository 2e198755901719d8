"""From scores to selected rows: order, budget, shares per source, random choice."""
