"""What a run took: operations, seconds, memory, and what a manifest says of it."""
