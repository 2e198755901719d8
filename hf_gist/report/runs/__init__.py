"""What the page says of each kind of run: its first sentences, and the sections of a selection from a stream."""
