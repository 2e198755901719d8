"""The `hf-gist` command."""
