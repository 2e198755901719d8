"""What the demo prints: the data before the training runs, the results after them."""

import shlex
from pathlib import Path

from hf_gist.commands.demo.result import GIST, RANDOM, UNTRAINED, WHOLE, DemoResult, DemoSettings
from hf_gist.commands.demo.tasks import NEIGHBOURS, TARGET_TASK, TASKS, DemoData
from hf_gist.config.files import FOLDER
from hf_gist.report import REPORT
from hf_gist.utils.terminal import in_columns, named, named_path, say, say_wrapped


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
    say(f"\n{named_path('artifacts', folder / FOLDER)}")
    say(named_path("report", folder / REPORT))
    print_next_steps(folder, settings)


def print_recall(result: DemoResult) -> None:
    """Target rows in the selection, compared with random rows and with rows drawn by answer length alone."""
    say("\nRows of the target task")
    say(named("in the pool", f"{result.hidden} of {result.rows[WHOLE]:,} rows ({result.share_of_pool():.1%})"))
    found = f"{result.found} of {result.kept} rows ({result.found / result.kept:.1%})"
    say(named("in the rows kept by GIST", f"{found}, {result.found / result.hidden:.1%} of all {result.hidden}"))
    say(named("in the random rows", f"{result.found_by_chance} of {result.kept} rows"))
    by_length = f"about {result.share_by_length * result.kept:.0f} of {result.kept} rows"
    say(named("drawn by answer length", f"{by_length}, with answers exactly as long as the target's"))


def print_losses(result: DemoResult) -> None:
    """The table of losses, and two sentences that compare GIST with the baselines."""
    rows = [["trained on", "rows", "steps", "target test loss"]]
    rows.append(["nothing (the base model)", "-", "-", f"{result.losses[UNTRAINED]:.4f}"])
    labels = {RANDOM: "random rows", GIST: "rows kept by GIST", WHOLE: "the whole pool, one pass"}
    for name, label in labels.items():
        rows.append([label, f"{result.rows[name]:,}", f"{result.steps[name]:,}", f"{result.losses[name]:.4f}"])
    say(f"\n{in_columns(rows)}")
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
    rows = [["phase", "seconds"]]
    rows += [[f"{'  ' * name.startswith('-')}{name}", f"{taken:.1f}"] for name, taken in result.seconds.items()]
    say(f"\n{in_columns(rows)}")


def print_next_steps(folder: Path, settings: DemoSettings) -> None:
    """How to use the callback, and commands that run on the files of the demo."""
    where = shlex.quote(str(folder))
    lora = settings.lora
    say("\nNext steps")
    say_wrapped("- Look at the report in a browser.")
    say_wrapped("- In your own training script, pass the callback to your Trainer; the README has an example:")
    say("    GISTDataSelectorCallback(GISTConfig(budget=0.05), target_dataset=targets)")
    say_wrapped("- Another selection from the same scores, in seconds:")
    print_command(
        "hf-gist select",
        f"--from_scores {where}/{FOLDER} --train_file {where}/{POOL}",
        "--budget 0.1 --strategy round_robin",
        f"--output_dir {where}/again",
    )
    say_wrapped("- A selection from the same pool; replace the model and the files with yours:")
    print_command(
        "hf-gist select",
        f"--model_name_or_path {where}/{BASE_MODEL}",
        f"--train_file {where}/{POOL}",
        f"--target_file {where}/{TARGETS}",
        f"--source_column task --budget {settings.budget}",
        f"--learning_rate {lora.learning_rate} --per_device_train_batch_size {lora.per_device_train_batch_size}",
        f"--output_dir {where}/select",
    )


def print_command(*parts: str) -> None:
    """A shell command over several lines, to copy and paste."""
    say("    " + " \\\n        ".join(parts))
