"""The embedded demo: everything made in code, no network and no GPU. See [`run_demo`]."""

from hf_gist.commands.demo.run import DemoResult, DemoSettings, run_demo


__all__ = ["DemoResult", "DemoSettings", "run_demo"]
