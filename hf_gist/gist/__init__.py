"""GIST: score a pool against a target set, then select rows."""
