"""Files, terminal output and a progress bar; independent of the rest of the package."""
