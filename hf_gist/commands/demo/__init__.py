"""The demo: data, model and selection generated in code, no network and no GPU. See [`run_demo`]."""

from hf_gist.commands.demo.result import DemoResult, DemoSettings
from hf_gist.commands.demo.run import run_demo


__all__ = ["DemoResult", "DemoSettings", "run_demo"]
