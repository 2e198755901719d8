"""`hf-gist select`."""

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_gist.commands.dry_run import SelectionPlan, plan_selection
from hf_gist.commands.flags import GROUPS, SelectArguments, add_settings_flags, settings_of
from hf_gist.commands.workspace import USAGE, check_source, open_targets, open_workspace, token_columns, warmed_model
from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.costs.ledger import CostLedger
from hf_gist.data.formats import load_rows, tokenize
from hf_gist.data.provenance import RowSource, digest, public_name
from hf_gist.gist.selection import RESELECTABLE, Selection
from hf_gist.gist.stream import check_stream_config, select_stream
from hf_gist.offline import select
from hf_gist.report import keep_examples, report_at_end, summary_line, summary_table
from hf_gist.training.loading import fresh_lora, load_adapter, padding_collator
from hf_gist.training.tracking import selection_metrics
from hf_gist.utils.disk import write, write_json
from hf_gist.utils.terminal import say


def _write_rows(rows: Any, selection: Selection, arguments: SelectArguments) -> Path:
    path = Path(arguments.output_dir) / f"selected.{arguments.output_format}"
    chosen = rows.select(selection.indices)
    if arguments.output_format == "parquet":
        write(path, chosen.to_parquet)
        return path
    lines = _lines(arguments.train_file) if (arguments.train_file or "").endswith(".jsonl") else []
    if len(lines) == len(rows):
        # the very lines of the pool: reading them as a table rewrites dates and numbers
        text = "".join(lines[i] + "\n" for i in selection.indices)
        write(path, lambda name: Path(name).write_text(text, encoding="utf-8"))
    else:
        write(path, partial(chosen.to_json, force_ascii=False))
    return path


def _lines(file: str) -> list[str]:
    with open(file, encoding="utf-8") as opened:
        return [line.rstrip("\n") for line in opened if line.strip()]


def _choose_again(arguments: SelectArguments, given: dict[str, Any], rows: Any) -> Selection:
    used = {*RESELECTABLE, "from_scores", "output_dir", "output_format", "train_file"}
    used |= {"dataset_name", "dataset_split", "dataset_config_name", "dataset_revision"}
    if set(given) - used:
        names = ", ".join(f"--{name}" for name in sorted(set(given) - used))
        raise ValueError(f"{names} would need scoring again and cannot be used with `--from_scores`.")
    before = Selection.load(arguments.from_scores)
    selection = before.reselect(**{name: given[name] for name in RESELECTABLE if name in given})
    known, found = before.manifest["train_dataset"].get("sha256"), digest(arguments.train_file)
    if rows is not None and (len(rows) != len(selection.scores) or (known and found and known != found)):
        raise ValueError(
            f"The pool given ({len(rows)} rows) is not the one that was scored in {arguments.from_scores} "
            f"({len(selection.scores)} rows). Give the `--train_file` or `--dataset_name` of that run."
        )
    folder = Path(arguments.output_dir)
    selection.save(folder)
    keep_examples(folder, selection, rows, None, earlier=Path(arguments.from_scores))
    return selection


def _evaluation(arguments: SelectArguments, tokenizer: Any, max_length: int) -> Dataset | None:
    files = arguments.eval_file or []
    rows = [load_rows(RowSource(file), "eval_file") for file in files]
    return token_columns([tokenize(part, tokenizer, max_length, "eval_file") for part in rows])


def _score(arguments: SelectArguments, warmup: WarmupSettings, config: GISTConfig, rows: Any) -> Selection:
    base = arguments.load_model()
    workspace, checkpoints, cost = open_workspace(arguments, rows, base), [], None
    evaluation = _evaluation(arguments, workspace.tokenizer, workspace.max_length)
    if arguments.adapter_name_or_path is not None:
        model = load_adapter(base, arguments.adapter_name_or_path)
    elif config.strategy in UNSCORED:
        model = fresh_lora(base, warmup, config.seed)
    else:
        warmed = warmed_model(workspace, base, warmup, config, evaluation)
        model, checkpoints, cost = warmed.model, warmed.checkpoints, warmed.cost
    selection = select(
        model,
        workspace.pool,
        workspace.targets,
        config,
        data_collator=workspace.collator,
        eval_dataset=evaluation,
        output_dir=arguments.output_dir,
        checkpoints=checkpoints,
    )
    manifest = selection.manifest | arguments.provenance(selection.manifest)
    if arguments.eval_file:
        manifest["eval_file"] = [Path(file).name for file in arguments.eval_file]
    if arguments.adapter_name_or_path is not None:
        manifest["adapter"] = public_name(arguments.adapter_name_or_path)
    elif config.strategy not in UNSCORED:
        manifest["warmup"] = dataclasses.asdict(warmup)
    costs = selection.costs if cost is None else selection.costs.with_phase(cost, first=True)
    selection = dataclasses.replace(selection, manifest=manifest, costs=costs)
    selection.save(arguments.output_dir)
    return selection


def _select_from_stream(arguments: SelectArguments, config: GISTConfig) -> dict[str, Any]:
    if arguments.adapter_name_or_path is None:
        raise ValueError("`--streaming` needs `--adapter_name_or_path`: a warm-up would read the stream first.")
    check_stream_config(config)
    base = arguments.load_model()
    targets, tokenizer, max_length = open_targets(arguments, base)
    rows = load_rows(arguments.pool_source, "train_file", streaming=True)
    selection = select_stream(
        load_adapter(base, arguments.adapter_name_or_path),
        rows,
        targets,
        config,
        data_collator=padding_collator(tokenizer),
        tokenize=lambda chunk: tokenize(chunk, tokenizer, max_length, "train_file"),
        eval_dataset=_evaluation(arguments, tokenizer, max_length),
    )
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    kept = Dataset.from_list(selection.rows)
    path = folder / f"selected.{arguments.output_format}"
    write(path, kept.to_parquet if arguments.output_format == "parquet" else partial(kept.to_json, force_ascii=False))
    write_json(
        folder / "stream.json", {"indices": selection.indices, "scores": selection.scores, "seen": selection.seen}
    )
    say(
        f"kept {len(selection.indices):,} of {selection.seen:,} rows of the stream ({selection.unscorable:,} unscorable)"
    )
    say(f"selected rows: {path}")
    counts = {"gist_rows": len(selection.indices), "seen": selection.seen, "unscorable": selection.unscorable}
    return counts | {"artifacts": arguments.output_dir, "selected_rows": str(path)}


def _plan(arguments: SelectArguments, warmup: WarmupSettings, config: GISTConfig) -> SelectionPlan:
    if arguments.from_scores is not None or arguments.streaming:
        other = "--from_scores" if arguments.from_scores is not None else "--streaming"
        raise ValueError(f"`--dry_run` cannot be used with `{other}`: there is no pool to plan for.")
    base = arguments.load_model()
    workspace, trained = open_workspace(arguments, arguments.load_pool(), base), arguments.adapter_name_or_path
    return plan_selection(
        load_adapter(base, trained) if trained else fresh_lora(base, warmup, config.seed),
        workspace,
        config,
        None if trained else warmup,
        _evaluation(arguments, workspace.tokenizer, workspace.max_length),
    )


def add_select_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `hf-gist select`."""
    parser.usage = f"hf-gist select {USAGE} [flags]"
    add_settings_flags(parser, GROUPS["select"])
    parser.add_argument(
        "--dry_run", action="store_true", help="Say what it would look at, need and take, and write nothing."
    )
    parser.add_argument("--json", action="store_true", help="Print the result as JSON, and all else on stderr.")


def run_select(flags: argparse.Namespace) -> dict[str, Any]:
    """`hf-gist select`; returns what `--json` prints."""
    given, (arguments, warmup, config) = settings_of(flags)
    if arguments.from_scores is None or arguments.output_dir is None:
        check_source(arguments)
    if flags.dry_run:
        plan = _plan(arguments, warmup, config)
        say(plan.describe())
        return plan.to_dict()
    if arguments.streaming:
        return _select_from_stream(arguments, config)
    rows = None
    if arguments.from_scores is None or "train_file" in given or "dataset_name" in given:
        rows = arguments.load_pool()
    if arguments.from_scores is None:
        selection = _score(arguments, warmup, config, rows)
    else:
        selection = _choose_again(arguments, given, rows)
    say(summary_line(selection))
    say(summary_table(selection))
    if selection.costs is not None:
        say(_cost(selection.costs))
    say(f"artifacts: {arguments.output_dir}")
    result = selection_metrics(selection) | {"method": selection.method, "artifacts": arguments.output_dir}
    if rows is not None:
        result["selected_rows"] = str(_write_rows(rows, selection, arguments))
        say(f"selected rows: {result['selected_rows']}")
    if path := report_at_end(arguments.output_dir, selection):
        result["report"] = str(path)
        say(f"report: {path}")
    return result | {"costs": None if selection.costs is None else selection.costs.to_dict()}


def _cost(costs: CostLedger) -> str:
    widths = [max(map(len, column)) for column in zip(*costs.table(), strict=True)]
    lines = [
        line[0].ljust(widths[0])
        + "".join(cell.rjust(width + 2) for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in costs.table()
    ]
    return "\n".join(["", *lines, costs.break_even()])
