"""Text to plain values: YAML and JSON, with one kind of error that says where the text is wrong."""

import json
import re
from typing import Any

import yaml


EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")

REASON_LENGTH = 200
"""Characters of a parser's message that are shown; some contain all of the text."""


def _with_numbers(value: Any) -> Any:
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _one_line(error: Exception) -> str:
    reason = " ".join(str(getattr(error, "problem", None) or error).split())
    return reason[:REASON_LENGTH] or type(error).__name__


def parse_yaml(text: str, name: str = "The text") -> Any:
    """Parse YAML, also accepting `2e-4` as a number (YAML 1.1 requires `2.0e-4`).

    Args:
        text (`str`): the text.
        name (`str`): file or setting that the text comes from, for the message.

    Raises:
        ValueError: with the name, the line and the reason, if the text is not YAML.
    """
    try:
        values = yaml.safe_load(text)
    except RecursionError:
        raise ValueError(f"{name} is not valid YAML: it is nested too deeply.") from None
    except Exception as error:  # PyYAML also lets IndexError, KeyError, AttributeError and others through
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{name} is not valid YAML{line}: {_one_line(error)}") from error
    if not isinstance(values, dict):
        return values
    flat = {key: _with_numbers(value) for key, value in values.items()}
    inner = {key: value for key, value in flat.items() if isinstance(value, dict)}
    return flat | {key: {k: _with_numbers(v) for k, v in value.items()} for key, value in inner.items()}


def parse_json(text: str, name: str = "The text") -> Any:
    """Parse JSON.

    Args:
        text (`str`): the text.
        name (`str`): file or setting that the text comes from, for the message.

    Raises:
        ValueError: with the name, the line and the reason, if the text is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{name} is not valid JSON: it is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not valid JSON, line {error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {_one_line(error)}") from error
