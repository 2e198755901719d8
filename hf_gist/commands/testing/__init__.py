"""Test sets of the commands: losses, choices answered by log-likelihood, and generated answers with a metric."""
