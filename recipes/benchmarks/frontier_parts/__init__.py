"""The parts of `frontier.py`."""
