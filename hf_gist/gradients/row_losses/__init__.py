"""The loss that rows are scored by: the loss of the model by row, or a loss of whole batches split by row."""
