"""What the demo prints: the data before the training runs, the results after them."""

import shlex
import sys
from pathlib import Path

from hf_gist.commands.demo.result import GIST, RANDOM, UNTRAINED, WHOLE, DemoResult, DemoSettings
from hf_gist.commands.demo.tasks import NEIGHBOURS, TARGET_TASK, TASKS, DemoData
from hf_gist.config.files import FOLDER
from hf_gist.report import REPORT
from hf_gist.utils.terminal import say_wrapped


BASE_MODEL = "base_model"
POOL = "pool.jsonl"
TARGETS = "targets.jsonl"


def print_data(data: DemoData, hidden: int) -> None:
    """Sizes and tasks of the pool, and one target row.

    Args:
        data (`DemoData`): all rows.
        hidden (`int`): rows of the target task in the pool.
    """
    example = data.targets[0]
    say_wrapped(
        f"1. The pool: {len(data.pool):,} instruction rows of {len(TASKS)} tasks, generated in code. {hidden} of them "
        f"({hidden / len(data.pool):.1%}) are of the target task '{TARGET_TASK}'; GIST does not use the task "
        f"labels. The targets are {len(data.targets)} other rows of that task, the test set is {len(data.test)} more. "
        "No question occurs twice."
    )
    say_wrapped(f"   {TARGET_TASK}: {example.prompt}\n   -> {example.answer}")
    names = ", ".join(f"'{name}' ({what})" for name, what in NEIGHBOURS.items())
    say_wrapped(f"   Similar tasks: {names}.")
    say_wrapped(f"   Other tasks: {', '.join(name for name in TASKS if name not in (TARGET_TASK, *NEIGHBOURS))}.\n")


# ---- Outcome ----


def print_outcome(result: DemoResult, folder: Path, settings: DemoSettings) -> None:
    """Recall, losses, seconds, files and next steps."""
    print_recall(result)
    print_losses(result)
    print_seconds(result)
    say_wrapped(f"\nArtifacts: {folder / FOLDER}")
    say_wrapped(f"Report:    {folder / REPORT} (open it in a browser)")
    print_next_steps(folder, settings)


def print_recall(result: DemoResult) -> None:
    """Target rows in the selection, compared with random rows and with rows drawn by answer length alone."""
    say_wrapped(
        f"\nTarget rows found: {result.found} of the {result.kept} rows that GIST kept are of the target task "
        f"({result.found / result.kept:.1%}; its share of the pool is {result.share_of_pool():.1%}). That is a recall of "
        f"{result.found / result.hidden:.1%} of all {result.hidden}."
    )
    say_wrapped(
        f"   For comparison: the random rows include {result.found_by_chance} of them; random rows with answers "
        f"exactly as long as the target's would have about {result.share_by_length * result.kept:.0f}."
    )


def print_losses(result: DemoResult) -> None:
    """The table of losses, and two sentences that compare GIST with the baselines."""
    say_wrapped(f"\n{'trained on':<30}{'rows':>8}{'steps':>8}{'target test loss':>20}")
    say_wrapped(f"{'nothing (the base model)':<30}{'-':>8}{'-':>8}{result.losses[UNTRAINED]:>20.4f}")
    labels = {WHOLE: "the whole pool, one pass", RANDOM: "random rows", GIST: "rows kept by GIST"}
    for name, label in labels.items():
        say_wrapped(f"{label:<30}{result.rows[name]:>8,}{result.steps[name]:>8,}{result.losses[name]:>20.4f}")
    times = result.steps[WHOLE] / result.steps[GIST]
    say_wrapped(f"\n{verdict(result, RANDOM, 'as many random rows in the same number of steps')}")
    say_wrapped(verdict(result, WHOLE, f"the whole pool in {times:.1f} times the steps"))


def verdict(result: DemoResult, other: str, words: str) -> str:
    """One sentence that compares GIST with another training, whichever is better."""
    gain = result.losses[other] - result.losses[GIST]
    if gain > 0:
        return f"GIST's rows gave a lower target loss than {words}: by {gain:.4f}."
    return f"GIST's rows did NOT give a lower target loss than {words} in this run: it is {-gain:.4f} higher."


def print_seconds(result: DemoResult) -> None:
    """Seconds of each phase."""
    say_wrapped(f"\n{'seconds':<46}")
    for name, seconds in result.seconds.items():
        say_wrapped(f"{'  ' * name.startswith('-') + name:<46}{seconds:>8.1f}")


def print_next_steps(folder: Path, settings: DemoSettings) -> None:
    """How to use the callback, and commands that run on the files of the demo."""
    where = shlex.quote(str(folder))
    say_wrapped("\nNext steps")
    say_wrapped("- In your own training script, pass the callback to your Trainer; the README has the full example:")
    say_wrapped("    GISTDataSelectorCallback(GISTConfig(budget=0.05), target_dataset=targets)")
    say_wrapped("- Another selection from the same scores, in seconds:")
    print_command(
        f"hf-gist select --from_scores {where}/{FOLDER} --budget 0.1 --strategy round_robin", f"{where}/again"
    )
    say_wrapped("- A selection from the same pool on the command line; replace the model and the files with yours:")
    print_command(
        f"hf-gist select --model_name_or_path {where}/{BASE_MODEL} --train_file {where}/{POOL}",
        f"--target_file {where}/{TARGETS} --source_column task --budget {settings.budget}",
        f"--learning_rate {settings.lora.learning_rate} --per_device_train_batch_size "
        f"{settings.lora.per_device_train_batch_size}",
        f"{where}/select",
    )


def print_command(*parts: str) -> None:
    """A shell command over several lines, to copy and paste; the last part is its output folder."""
    sys.stdout.write("    " + " \\\n        ".join([*parts[:-1], f"--output_dir {parts[-1]}"]) + "\n")
