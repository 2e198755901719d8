"""The parts of `real_model.py`."""
