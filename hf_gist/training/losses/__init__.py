"""The loss of a trainer: which rows can be scored by it, and how."""
