"""Base class of the configurations: frozen dataclasses, range checks reported in one error, JSON and YAML."""

import dataclasses
import json
import math
import os
import re
import types
import typing
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from hf_gist.config.files import load_config, save_config


EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")

Config = TypeVar("Config", bound="BaseConfig")

Rule = tuple[str, bool, str]
"""A range check: field name, whether the value is in range, and the range as text."""


def fraction_or_count(text: str) -> int | float:
    """`"0.05"` and `"5e-2"` as a fraction, `"500"` as a count; integers are counts, as in `TrainingArguments`."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def parse_yaml(text: str) -> Any:
    """Parse YAML, also accepting `2e-4` as a number (YAML 1.1 requires `2.0e-4`)."""
    values = yaml.safe_load(text)
    if not isinstance(values, dict):
        return values
    return {name: float(v) if isinstance(v, str) and EXPONENT.fullmatch(v) else v for name, v in values.items()}


def matches_type(value: Any, hint: Any) -> bool:
    """Whether a value read from YAML or JSON matches a field's type; a float field accepts an int, but no bool."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        return any(matches_type(value, option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(matches_type(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is dict:
        key, item = get_args(hint)
        return isinstance(value, dict) and all(
            matches_type(k, key) and matches_type(v, item) for k, v in value.items()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe_type(hint: Any) -> str:
    """A field's type, for an error message."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(option) for option in get_args(hint))
    if get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(describe_type(option) for option in get_args(hint))
    if get_origin(hint) is list:
        return f"a list, each item {describe_type(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return f"a mapping of names, each to {describe_type(get_args(hint)[1])}"
    return "null" if hint is type(None) else hint.__name__


def fits_fraction_or_count(amount: int | float) -> bool:
    """Whether a float is a fraction in (0, 1], or an int at least 1."""
    return math.isfinite(amount) and (0 < amount <= 1 if isinstance(amount, float) else amount >= 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Base class of the configurations: type checks, range checks and files."""

    FILE: ClassVar[str]
    """Name of the file in a folder or a Hub repository."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        wrong = [
            (name, describe_type(hints[name]))
            for name, value in self.to_dict().items()
            if not matches_type(value, hints[name])
        ]
        wrong = wrong or [(name, rule) for name, holds, rule in self.rules() if not holds]
        if wrong:
            problems = [f"`{name}` must be {wanted}, got {getattr(self, name)!r}" for name, wanted in wrong]
            raise ValueError(f"{type(self).__name__}: " + "; ".join(problems) + ".")

    def rules(self) -> list[Rule]:
        """Range checks of the fields; called after the type checks have passed."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """Build from a mapping.

        Raises:
            ValueError: for an unknown key, a wrong type or a value out of range, naming each.
        """
        if not isinstance(values, dict):
            raise ValueError(
                f"{cls.__name__}: expected a mapping of field names to values, got {type(values).__name__}."
            )
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(str(key) for key in values if key not in known)
        if unknown:
            raise ValueError(f"{cls.__name__}: unknown key(s) {', '.join(unknown)}. Known keys: {', '.join(known)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The fields as JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls: type[Config], text: str) -> Config:
        """Build from JSON text."""
        return cls.from_dict(json.loads(text))

    def to_yaml(self) -> str:
        """The fields as YAML text, in the order of their definition."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls: type[Config], text: str) -> Config:
        """Build from YAML text."""
        return cls.from_dict(parse_yaml(text) or {})

    @classmethod
    def from_pretrained(
        cls: type[Config],
        name_or_folder: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        repo_type: str = "model",
    ) -> Config:
        """Read the configuration of a run from its folder, or from the repository it was pushed to.

        Args:
            name_or_folder (`str` or `PathLike`): a local folder, or `user/model` on the Hub.
            revision (`str`, *optional*): branch, tag or commit.
            token (`str` or `bool`, *optional*): by default the token of `hf auth login`.
            cache_dir (`str` or `PathLike`, *optional*): folder for downloaded files.
            local_files_only (`bool`, defaults to `False`): use only cached files.
            repo_type (`str`, defaults to `"model"`): `"dataset"` for a pushed selection.

        Raises:
            ValueError: if the file does not exist or is not valid, naming the cause.
        """
        options = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        return load_config(cls, name_or_folder, repo_type, revision=revision, **options)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the configuration into a folder, for [`from_pretrained`] to read."""
        save_config(self, folder)
