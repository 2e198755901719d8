"""Parts of a GAST trainer: memory, the scale of the loss, and a saved support gradient."""
