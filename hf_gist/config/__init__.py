"""Configuration classes: user settings, their valid ranges, and reading and writing them as files."""

from hf_gist.config.gast import GASTConfig
from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings


__all__ = ["GASTConfig", "GISTConfig", "WarmupSettings"]
