"""The loss of the target rows during training: measured, kept as a series, judged, and used to end the training."""
