"""Plugins for training programs with a configuration of their own; each module imports its program."""
