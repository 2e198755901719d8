"""The steps of a run: how many, on which rows, at which learning rate, and the proof that it was those rows."""
