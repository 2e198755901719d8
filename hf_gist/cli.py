"""The `hf-gist` command."""

import argparse
import dataclasses
import hashlib
import sys
import time
import types
import typing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from hf_gist.artifacts import RESELECTABLE, Selection, write
from hf_gist.config import GISTConfig, describe_type, fraction_or_count, matches_type, parse_yaml
from hf_gist.data import load_rows, tokenize
from hf_gist.pipeline import prepare, select
from hf_gist.report import save_selection_figures, summary_line, summary_table
from hf_gist.version import __version__
from hf_gist.warmup import (
    WarmupSettings,
    fresh_lora,
    load_adapter,
    load_base,
    load_tokenizer,
    padding_collator,
    positions,
    warm_up,
)


LONGEST_ROW = 1024


def _flag(text: str, default: Any = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class SelectArguments:
    """Where `hf-gist select` reads and writes."""

    model_name_or_path: str | None = _flag("Model folder or Hub id.")
    model_revision: str | None = _flag("Branch, tag or commit of the model.")
    adapter_name_or_path: str | None = _flag("Trained LoRA adapter; without one, a fresh LoRA takes its own warm-up.")
    dtype: str = _flag("Dtype the model is loaded in: auto, float32 or bfloat16.", "auto")
    trust_remote_code: bool = _flag("Run code that comes with the model.", False)
    train_file: str | None = _flag("Candidate pool: JSONL, JSON, Parquet or CSV.")
    dataset_name: str | None = _flag("Candidate pool on the Hub, instead of a file.")
    dataset_split: str = _flag("Its split.", "train")
    target_file: str | None = _flag("Target set: a few rows of what the model should become good at.")
    target_dataset_name: str | None = _flag("Target set on the Hub, instead of a file.")
    target_dataset_split: str = _flag("Its split.", "train")
    max_length: int | None = _flag(
        f"Longest row in tokens; longer ones are cut at the end. Default: the tokenizer's own limit, or {LONGEST_ROW}."
    )
    output_dir: str | None = _flag("Folder for the artifacts and the selected rows.")
    output_format: Literal["jsonl", "parquet"] = _flag("Format of the selected rows.", "jsonl")
    from_scores: str | None = _flag("Folder with the scores of an earlier run: choose again without scoring.")


GROUPS = (SelectArguments, WarmupSettings, GISTConfig)


def _flag_type(hint: Any) -> dict[str, Any]:
    options = [option for option in get_args(hint) if option is not type(None)]
    if hint is bool:
        return {"action": "store_true"}
    if get_origin(hint) is Literal:
        return {"choices": options}
    if get_origin(hint) in (types.UnionType, typing.Union):
        return {"type": fraction_or_count if set(options) == {int, float} else options[0]}
    return {"type": hint}


def _add_flags(parser: argparse.ArgumentParser) -> None:
    for cls in GROUPS:
        group = parser.add_argument_group(cls.__name__)
        for field in dataclasses.fields(cls):
            shown = "" if field.default in (None, False) else f" Default: {field.default}."
            text = (field.metadata.get("help") or _doc_line(cls, field.name)) + shown
            kind = _flag_type(get_type_hints(cls)[field.name])
            group.add_argument(f"--{field.name}", default=argparse.SUPPRESS, help=text.replace("%", "%%"), **kind)


def _doc_line(cls: type, name: str) -> str:
    line = next(line for line in (cls.__doc__ or "").splitlines() if line.strip().startswith(f"{name} ("))
    return line.split("): ", 1)[1]


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = argparse.ArgumentParser("hf-gist", description="Pick the training data that fits your target.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="see a selection, a training and the comparison against random")
    demo.add_argument("--output_dir", default="gist_demo", help="Folder for what the demo writes.")
    demo.add_argument("--seed", type=int, default=42, help="Seed of everything in the demo.")
    choose = commands.add_parser("select", help="select the rows of a pool that align with a target set")
    choose.add_argument("--config", help="YAML file with any of the flags below; flags override it.")
    _add_flags(choose)
    for command in (demo, choose):
        command.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"`--config {path}` cannot be read: {error}") from error
    hints = {name: hint for cls in GROUPS for name, hint in get_type_hints(cls).items()}
    if not isinstance(values, dict) or set(values) - set(hints):
        unknown = ", ".join(map(str, set(values) - set(hints))) if isinstance(values, dict) else "not a mapping"
        raise ValueError(f"`--config {path}`: unknown key(s): {unknown}. Known keys: {', '.join(sorted(hints))}.")
    for name, value in values.items():
        if not matches_type(value, hints[name]):
            raise ValueError(f"`--config {path}`: `{name}` must be {describe_type(hints[name])}, got {value!r}.")
    return values


def _settings(flags: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """What was given explicitly, and one instance of each group with it filled in."""
    given = _read_yaml(flags.config) if flags.config else {}
    given |= {name: value for name, value in vars(flags).items() if name not in ("command", "config", "debug")}
    groups = [cls(**{f.name: given[f.name] for f in dataclasses.fields(cls) if f.name in given}) for cls in GROUPS]
    return given, groups


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


def _digest(file: str | None) -> str | None:
    if file is None:
        return None
    with open(file, "rb") as opened:
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _choose_again(arguments: SelectArguments, given: dict[str, Any], rows: Any) -> Selection:
    used = {*RESELECTABLE, "from_scores", "output_dir", "output_format", "train_file", "dataset_name", "dataset_split"}
    if set(given) - used:
        names = ", ".join(f"--{name}" for name in sorted(set(given) - used))
        raise ValueError(f"{names} would need scoring again and cannot be used with `--from_scores`.")
    before = Selection.load(arguments.from_scores)
    selection = before.reselect(**{name: given[name] for name in RESELECTABLE if name in given})
    known, digest = before.manifest.get("train_file_sha256"), _digest(arguments.train_file)
    if rows is not None and (len(rows) != len(selection.scores) or (known and digest and known != digest)):
        raise ValueError(
            f"The pool given ({len(rows)} rows) is not the one that was scored in {arguments.from_scores} "
            f"({len(selection.scores)} rows). Give the `--train_file` or `--dataset_name` of that run."
        )
    selection.save(Path(arguments.output_dir))
    return selection


def _score(arguments: SelectArguments, warmup: WarmupSettings, config: GISTConfig, rows: Any) -> Selection:
    if arguments.model_name_or_path is None:
        raise ValueError("`--model_name_or_path` is missing.")
    if arguments.max_length is not None and arguments.max_length < 1:
        raise ValueError(f"`--max_length {arguments.max_length}` must be at least 1.")
    targets = load_rows(
        arguments.target_file, arguments.target_dataset_name, arguments.target_dataset_split, "target_file"
    )
    name, revision, trust = arguments.model_name_or_path, arguments.model_revision, arguments.trust_remote_code
    tokenizer, limit = load_tokenizer(name, revision, trust)
    model = load_base(name, revision, arguments.dtype, trust)
    max_length = arguments.max_length or min(limit, positions(model), LONGEST_ROW)
    pool = tokenize(rows, tokenizer, max_length, "train_file")
    targets = tokenize(targets, tokenizer, max_length, "target_file")
    folder, collator = Path(arguments.output_dir), padding_collator(tokenizer)
    if arguments.adapter_name_or_path is not None:
        model = load_adapter(model, arguments.adapter_name_or_path)
    else:
        model = fresh_lora(model, warmup, config.seed)
        prepare(model, pool, targets, config, collator)  # what is wrong should show before the warm-up
        model = warm_up(model, pool, tokenizer, config, warmup, folder / "warmup_adapter")
    selection = select(model, pool, targets, config, data_collator=collator)
    manifest = selection.manifest | {"train_file_sha256": _digest(arguments.train_file)}
    selection = dataclasses.replace(selection, manifest=manifest)
    selection.save(folder)
    return selection


def run_select(flags: argparse.Namespace) -> None:
    """`hf-gist select`."""
    given, (arguments, warmup, config) = _settings(flags)
    if arguments.output_dir is None:
        raise ValueError("`--output_dir` is missing: it receives the artifacts and the selected rows.")
    rows, start = None, time.perf_counter()
    if arguments.from_scores is None or "train_file" in given or "dataset_name" in given:
        rows = load_rows(arguments.train_file, arguments.dataset_name, arguments.dataset_split, "train_file")
    if arguments.from_scores is None:
        selection = _score(arguments, warmup, config, rows)
        _draw(selection, arguments.output_dir)
    else:
        selection = _choose_again(arguments, given, rows)
    _say(summary_line(selection))
    _say(summary_table(selection))
    if arguments.from_scores is None:
        _say(_cost(selection, time.perf_counter() - start))
    _say(f"artifacts: {arguments.output_dir}")
    if rows is not None:
        _say(f"selected rows: {_write_rows(rows, selection, arguments)}")


def _cost(selection: Selection, seconds: float) -> str:
    rate = len(selection.scores) / selection.manifest["seconds"]["scoring"]
    memory = selection.manifest["peak_memory_bytes"] / 2**30
    return f"\nscored {rate:,.1f} rows/s, {seconds:,.0f} s in all, peak memory {memory:.2f} GiB"


def _draw(selection: Selection, folder: str) -> None:
    try:
        save_selection_figures(selection, folder)
    except ImportError as error:
        _say(str(error))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def main(argv: list[str] | None = None) -> int:
    """Entry point of `hf-gist`.

    Returns:
        `int`: 0, or 2 after an error in what the user gave.
    """
    flags = build_parser().parse_args(argv)
    try:
        if flags.command == "demo":
            # it needs what `select` does not, and takes a moment to import
            from hf_gist.demo import run_demo

            run_demo(Path(flags.output_dir), flags.seed)
        else:
            run_select(flags)
    except (ValueError, OSError, ImportError) as error:
        if flags.debug:
            raise
        sys.stderr.write(f"hf-gist: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
