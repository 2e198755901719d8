"""The configurations: what the user sets, with ranges, and their files."""

from hf_gist.config.gast import GASTConfig
from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings


__all__ = ["GASTConfig", "GISTConfig", "WarmupSettings"]
