"""The flags of the `hf-gist` command: read from the settings classes, YAML files and the Hub."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hf_gist.commands.compare.arguments import CompareArguments
from hf_gist.commands.workspace import SourceArguments, flag
from hf_gist.config.base import describe_type, fraction_or_count, matches_type
from hf_gist.config.documentation import setting_help
from hf_gist.config.files import SCHEME, config_from_uri
from hf_gist.config.gist import GISTConfig
from hf_gist.config.parsing import parse_yaml
from hf_gist.config.warmup import WarmupSettings
from hf_gist.data.provenance import RowSource
from hf_gist.data.reading.load import SOURCE, source_names
from hf_gist.gist.checks import check_only_selects


@dataclass(frozen=True)
class SelectArguments(SourceArguments):
    """Where `hf-gist select` reads and writes."""

    adapter_name_or_path: str | None = flag("Trained LoRA adapter; without one, a new LoRA is trained in a warm-up.")
    eval_file: list[str] | None = flag(
        "Evaluation rows; pool rows that are also evaluation rows are reported and not selected."
    )
    streaming: bool = flag(
        "Read the pool once, row by row: needs --adapter_name_or_path and a --budget in rows.", False
    )
    output_format: Literal["jsonl", "parquet"] = flag("Format of the selected rows.", "jsonl")
    from_scores: str | None = flag("Folder with the scores of an earlier run: select again without scoring.")


GROUPS = {
    "select": (SelectArguments, WarmupSettings, GISTConfig),
    "compare": (CompareArguments, WarmupSettings, GISTConfig),
}


TITLES = {
    SelectArguments: "model, data and output",
    CompareArguments: "model, data, methods and output",
    WarmupSettings: "LoRA and its warm-up (without --adapter_name_or_path)",
    GISTConfig: "selection (GISTConfig)",
}

NOT_SETTINGS = ("command", "config", "debug", "json", "dry_run")


class _Pairs(argparse.Action):
    """Collects `name=value` pairs into a dict; a flag that is given twice adds to it."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        pairs = {**getattr(namespace, self.dest, {}), **dict(values)}
        setattr(namespace, self.dest, pairs)


def _pair(item: Any) -> Callable[[str], tuple[str, Any]]:
    """The parser of `name=value`, where `item` is the type of the value."""
    options = [option for option in get_args(item) if option is not type(None)] or [item]

    def parse(text: str) -> tuple[str, Any]:
        # a number has no `=`, so that the name may have one
        name, _, value = text.partition("=") if item is str else text.rpartition("=")
        try:
            parsed = fraction_or_count(value) if set(options) == {int, float} else options[0](value)
        except ValueError:
            parsed = None
        if not name or parsed in (None, ""):
            kind = "VALUE" if item is str else "NUMBER"
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME={kind}")
        return name, parsed

    return parse


def _flag_type(hint: Any) -> dict[str, Any]:
    if get_origin(hint) is dict:
        item = get_args(hint)[1]
        metavar = "NAME=VALUE" if item is str else "NAME=NUMBER"
        return {"nargs": "+", "type": _pair(item), "action": _Pairs, "metavar": metavar}
    options = [option for option in get_args(hint) if option is not type(None)]
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": options}
    if get_origin(hint) in (types.UnionType, typing.Union):
        if get_origin(options[0]) is list:
            return {"nargs": "+", "type": get_args(options[0])[0]}
        if get_origin(options[0]) is dict:
            return _flag_type(options[0])
        return {"type": fraction_or_count if set(options) == {int, float} else options[0]}
    return {"type": hint}


def add_settings_flags(parser: argparse.ArgumentParser, groups: Sequence[type]) -> None:
    """A flag for each field of some settings classes, and `--config`."""
    parser.add_argument(
        "--config",
        help="YAML file with any of the flags below, or hf://user/model for the GISTConfig of a run on the Hub; flags override it.",
    )
    for cls in groups:
        group = parser.add_argument_group(TITLES[cls])
        texts = setting_help(cls)
        for field in dataclasses.fields(cls):
            shown = "" if field.default in (None, False, dataclasses.MISSING) else f" Default: {field.default}."
            text = (field.metadata.get("help") or texts.get(field.name, "")) + shown
            kind = _flag_type(get_type_hints(cls)[field.name])
            group.add_argument(f"--{field.name}", default=argparse.SUPPRESS, help=text.replace("%", "%%"), **kind)


def _read_yaml(path: str, groups: Sequence[type]) -> dict[str, Any]:
    if path.startswith(SCHEME):
        # only the fields of GISTConfig: a file on the Hub must not choose the model or the code to run
        config = config_from_uri(GISTConfig, path).to_dict()
        default = GISTConfig().to_dict()
        return {name: value for name, value in config.items() if value != default[name]}
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8"), f"`--config {path}`") or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`--config {path}` cannot be read: {error}") from error
    hints = {f.name: get_type_hints(cls)[f.name] for cls in groups for f in dataclasses.fields(cls)}
    if not isinstance(values, dict) or set(values) - set(hints):
        unknown = ", ".join(map(str, set(values) - set(hints))) if isinstance(values, dict) else "not a mapping"
        raise ValueError(f"`--config {path}`: unknown key(s): {unknown}. Known keys: {', '.join(sorted(hints))}.")
    for name, value in values.items():
        if not matches_type(value, hints[name]):
            raise ValueError(f"`--config {path}`: `{name}` must be {describe_type(hints[name])}, got {value!r}.")
    return values


def settings_of(flags: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """The settings given explicitly, and one instance of each settings class with their values."""
    classes = GROUPS[flags.command]
    given = _read_yaml(flags.config, classes) if flags.config else {}
    given |= {name: value for name, value in vars(flags).items() if name not in NOT_SETTINGS}
    values = _several_sources(given) | given
    groups = [cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}) for cls in classes]
    for config in groups:
        if isinstance(config, GISTConfig):
            check_only_selects(config)
    return given, groups


def _several_sources(given: dict[str, Any]) -> dict[str, Any]:
    """The column of the sources, which rows from several files or datasets have; nothing for one file."""
    if "from_scores" in given or not (given.get("train_file") or given.get("dataset_name")):
        return {}
    source = RowSource(given.get("train_file"), given.get("dataset_name"))
    return {"source_column": SOURCE} if len(list(source_names(source, "train_file"))) > 1 else {}
