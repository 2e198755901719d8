"""The flags of the `hf-gist` command: read from the settings classes, YAML files and the Hub."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
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


class NamedValues(argparse.Action):
    """Reads `--flag NAME=VALUE NAME=VALUE` into a mapping.

    Args:
        kind (`type`): of the values.
    """

    def __init__(self, *args: Any, kind: type, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind = kind

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Parse some values, and add them to those given before."""
        found = dict(getattr(namespace, self.dest, {}))
        for text in values:
            # a name may contain an equals sign
            name, equals, value = text.rpartition("=")
            try:
                found[name] = self.kind(value if equals else "")
            except ValueError:
                parser.error(f"argument {option_string}: {text!r} is not NAME=VALUE with a {self.kind.__name__}")
        setattr(namespace, self.dest, found)


def _flag_type(hint: Any) -> dict[str, Any]:
    options = [option for option in get_args(hint) if option is not type(None)]
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": options}
    if get_origin(hint) in (types.UnionType, typing.Union):
        if get_origin(options[0]) is dict:
            return {"nargs": "+", "action": NamedValues, "kind": get_args(options[0])[1], "metavar": "NAME=VALUE"}
        if get_origin(options[0]) is list:
            return {"nargs": "+", "type": get_args(options[0])[0]}
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
            shown = "" if field.default in (None, False) else f" Default: {field.default}."
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
    groups = [cls(**{f.name: given[f.name] for f in dataclasses.fields(cls) if f.name in given}) for cls in classes]
    return given, groups
