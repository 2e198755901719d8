"""The parts of `while_training.py`."""
