"""The flags of `hf-gist compare` beside those of every selection."""

from dataclasses import dataclass

from hf_gist.commands.compare.arms import ARMS
from hf_gist.commands.workspace import SourceArguments, flag


@dataclass(frozen=True)
class CompareArguments(SourceArguments):
    """What `hf-gist compare` trains and measures."""

    test_file: list[str] | None = flag("Held-out rows to measure the loss on: FILE, or NAME=FILE for several.")
    methods: list[str] | None = flag(f"Of: {', '.join(ARMS)}. Default: all that the other flags allow, but less.")
    seeds: list[int] | None = flag("Seeds of LoRA, order and random rows. Default: 0 1 2.")
    oracle_source: list[str] | None = flag("Value(s) of --source_column that in_domain_random draws from.")
    num_train_epochs: float = flag("Passes over each method's rows.", 3.0)
    max_steps: int = flag("Optimizer steps instead of passes, the same for all methods.", -1)
    whole_pool_epochs: float = flag("Passes of the method whole_pool.", 1.0)
    target_column: str | None = flag("Column of the targets: with --target_value, only those rows are the target set.")
    target_value: str | None = flag("Its value. The scores hold all targets, so several target sets share a scoring.")
    scores_dir: str | None = flag("Where scores are kept and reused. Default: scores in the output folder.")
