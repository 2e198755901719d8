"""`hf-gist compare`: does selection pay on this data? Train on each method's rows, and compare."""

from hf_gist.commands.compare.run import CompareArguments, run_compare


__all__ = ["CompareArguments", "run_compare"]
