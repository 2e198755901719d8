"""Base class of the configurations: frozen dataclasses, range checks reported in one error, JSON and YAML."""

import dataclasses
import json
import math
import os
import reprlib
import types
import typing
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from hf_gist.config.files import load_config, save_config
from hf_gist.config.parsing import parse_json, parse_yaml


Config = TypeVar("Config", bound="BaseConfig")

Rule = tuple[str, bool, str]
"""A range check: field name, whether the value is in range, and the range as text."""

LARGEST_INT = 2**63
"""Integers of a configuration are below this, so that tensors and Parquet files can hold them."""

_shown = reprlib.Repr()
_shown.maxlevel = 2
_shown.maxstring = 200


def fraction_or_count(text: str) -> int | float:
    """`"0.05"` and `"5e-2"` as a fraction, `"500"` as a count; integers are counts, as in `TrainingArguments`."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def matches_type(value: Any, hint: Any) -> bool:
    """Whether a value read from YAML or JSON matches a field's type; a float field accepts an int, but no bool."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        return any(matches_type(value, option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(matches_type(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is dict:
        of_key, of_value = get_args(hint)
        return isinstance(value, dict) and all(
            matches_type(name, of_key) and matches_type(item, of_value) for name, item in value.items()
        )
    if hint is float and isinstance(value, float):
        return True
    if hint in (int, float):
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST_INT
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
            for name, value in vars(self).items()
            if not matches_type(value, hints[name])
        ]
        wrong = wrong or [(name, rule) for name, holds, rule in self.rules() if not holds]
        if wrong:
            problems = [f"`{name}` must be {wanted}, got {_shown.repr(getattr(self, name))}" for name, wanted in wrong]
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
    def from_json(cls: type[Config], text: str, name: str | None = None) -> Config:
        """Build from JSON text.

        Args:
            text (`str`): the text.
            name (`str`, *optional*): file that the text comes from, for the message.

        Raises:
            ValueError: with the line and the reason, if the text is not JSON; see also [`from_dict`].
        """
        return cls.from_dict(parse_json(text, cls.__name__ if name is None else name))

    def to_yaml(self) -> str:
        """The fields as YAML text, in the order of their definition."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls: type[Config], text: str, name: str | None = None) -> Config:
        """Build from YAML text; an empty text gives the defaults.

        Args:
            text (`str`): the text.
            name (`str`, *optional*): file that the text comes from, for the message.

        Raises:
            ValueError: with the line and the reason, if the text is not YAML; see also [`from_dict`].
        """
        values = parse_yaml(text, cls.__name__ if name is None else name)
        return cls.from_dict({} if values is None else values)

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
