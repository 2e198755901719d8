"""GIST: measure a pool against a target set, then choose."""
