"""The reference in recipes/guides, generated from docstrings and the flags of the commands.

`python -m tests.helpers.reference` writes it.
"""

import argparse
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import hf_gist
from hf_gist import errors
from hf_gist.commands.flags import GROUPS, TITLES
from hf_gist.commands.main import COMMANDS, build_parser
from hf_gist.config import GASTConfig, GISTConfig, WarmupSettings
from hf_gist.config.base import BaseConfig
from hf_gist.config.documentation import setting_texts
from tests import ROOT


GUIDES = ROOT / "recipes" / "guides"
SETTINGS = (GISTConfig, GASTConfig, WarmupSettings)
PAGES = {
    "trainers": ["GISTDataSelectorCallback", "GASTTrainer", "GASTMixin", "GASTSFTTrainer", "save_support_gradient"],
    "selecting": ["select", "Selection", "select_stream", "StreamSelection", "per_sample_gradients_reference"],
    "hub": ["push_to_hub", "export_dataset"],
}
TITLES_OF_PAGES = {"trainers": "Trainers", "selecting": "Selecting without a Trainer", "hub": "Hub"}
ONLY_WITH_MIXIN = ("GASTTrainer", "GASTSFTTrainer")
"""Their arguments are those of `GASTMixin`."""

INTERNAL = ("rules", "run", "uses_support", "support_file")
NOTE = "<!-- written by python -m tests.helpers.reference -->"
FIELD_GROUPS = {TITLES[cls]: cls for cls in (GISTConfig, WarmupSettings)}


# ---- Docstrings ----


def without_links(text: str) -> str:
    """[`name`] and [`~package.name`] as plain code."""
    return re.sub(r"\[`~?([^`\]]+)`\]", r"`\1`", text)


def summary(thing: Any) -> str:
    """The first paragraph of a docstring, as one line."""
    return " ".join(without_links(inspect.getdoc(thing) or "").split("\n\n")[0].split())


def _entry(line: str) -> str:
    """`name (type): text` of a section of a docstring, as an item of a list."""
    found = re.match(r"([\w.]+)((?: \(.+\))?:.*)$", line)
    return f"- `{found[1]}`{found[2]}" if found else f"- {line}"


def markdown(doc: str) -> list[str]:
    """A docstring as lines of Markdown: sections become lists, examples stay as they are."""
    lines: list[str] = []
    section = ""
    fenced = False
    for line in without_links(inspect.cleandoc(doc)).split("\n"):
        if line.strip().startswith("```"):
            fenced = not fenced
            lines.append(line.strip())
        elif fenced:
            lines.append(line[4:] if line.startswith("    ") and section == "Example" else line)
        elif found := re.match(r"(Args|Attributes|Returns|Raises|Warns|Example):$", line):
            section = found[1]
            lines += [f"{'Arguments' if section == 'Args' else section}:", ""]
        elif not line:
            section = section if section == "Example" else ""
            lines.append("")
        elif section and (line.startswith("        ") or (section == "Returns" and lines[-1])):
            lines[-1] += f" {line.strip()}"
        elif section:
            lines.append(_entry(line.strip()))
        elif lines and lines[-1]:
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return [line for at, line in enumerate(lines) if line or (at and lines[at - 1])]


# ---- Settings ----


def default_of(field: dataclasses.Field) -> str:
    """The default of a setting, as code."""
    if field.default is None:
        return "none"
    return f'`"{field.default}"`' if isinstance(field.default, str) else f"`{field.default}`"


def range_of(cls: type, name: str) -> str | None:
    """The values that a setting accepts: the choices, or its range check; `None` if any value of its type is valid."""
    hint = get_type_hints(cls)[name]
    if get_origin(hint) is Literal:
        return ", ".join(f'`"{option}"`' for option in get_args(hint))
    config = cls()
    if getattr(config, name) is None:
        try:
            # the range of an optional number is checked only if it is given
            config = cls(**{name: 1})
        except ValueError:
            config = cls()
    rules = config.rules() if hasattr(config, "rules") else []
    return next((rule for field, _, rule in rules if field == name), None)


def settings_list(cls: type) -> list[str]:
    """An item for each setting: default, range, what it does and when to change it."""
    texts = setting_texts(cls)
    items = []
    for field in dataclasses.fields(cls):
        accepted = range_of(cls, field.name)
        facts = f"default {default_of(field)}" + (f"; {accepted}" if accepted else "")
        items.append(f"- **`{field.name}`** ({facts}): {texts[field.name]}")
    return items


def settings_page() -> str:
    lines = ["# Settings", "", NOTE, ""]
    lines += [
        "Default, range, what each setting does and when to change it. They are arguments of the class in Python,"
    ]
    lines += ["flags on the command line, and keys in a YAML file."]
    lines += ["Which to set first: [Choosing settings](../choosing_settings.md).", ""]
    for cls in SETTINGS:
        own = public_methods(cls)
        lines += [f"## {cls.__name__}", "", summary(cls), "", *settings_list(cls), *own, ""]
    lines += ["## Files", "", "Methods of `GISTConfig` and `GASTConfig`:", "", *public_methods(BaseConfig), ""]
    return "\n".join(lines)


# ---- Python ----


def signature(thing: Any) -> str:
    """The arguments of a function or class, without annotations."""
    full = inspect.signature(thing)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in full.parameters.values() if p.name != "self"]
    return str(full.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def public_methods(cls: type) -> list[str]:
    """An item for each public method and property that a class of this package adds."""
    items = []
    for name, value in vars(cls).items():
        own = inspect.isfunction(value) or isinstance(value, (property, classmethod))
        doc = summary(value.fget if isinstance(value, property) else value)
        if own and not name.startswith(("_", "on_")) and name not in INTERNAL and not doc.startswith("See "):
            shown = name if isinstance(value, property) else f"{name}{signature(getattr(cls, name))}"
            items.append(f"- `{shown}`: {doc}")
    return items


def about(name: str) -> list[str]:
    """The section of a public name."""
    thing = getattr(hf_gist, name)
    shown = "" if dataclasses.is_dataclass(thing) or name in ONLY_WITH_MIXIN else f"`{name}{signature(thing)}`"
    lines = [*([shown, ""] if shown else []), *markdown(thing.__doc__ or "")]
    methods = public_methods(thing) if inspect.isclass(thing) else []
    return [*lines, "", "Methods and properties:", "", *methods] if methods else lines


def page_of(name: str) -> str:
    """The page of a public name, without its ending.

    Raises:
        StopIteration: if the name has no page; give it one in `PAGES`.
    """
    return next(page for page, names in {**PAGES, "settings": [c.__name__ for c in SETTINGS]}.items() if name in names)


def warnings_list() -> list[str]:
    return [f"- `{name}`: {summary(cls)}" for name, cls in vars(errors).items() if inspect.isclass(cls)]


def python_page(page: str) -> str:
    lines = [f"# {TITLES_OF_PAGES[page]}", "", NOTE, "", "Import every name from `hf_gist`.", ""]
    for name in PAGES[page]:
        lines += [f"## {name}", "", *about(name), ""]
    if page == "trainers":
        lines += ["## Warnings", "", "In `hf_gist.errors`.", "", *warnings_list(), ""]
    return "\n".join(lines)


# ---- Command line ----


def flag_item(action: argparse.Action) -> str:
    """An item for one flag."""
    names = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.metavar}`"
    value = ""
    if action.choices:
        value = f" ({' or '.join(f'`{choice}`' for choice in action.choices)})"
    elif action.option_strings and action.nargs == "+":
        value = f" (`{action.metavar}`, several)" if action.metavar else " (several)"
    text = (action.help or "").replace("%%", "%")
    if action.default not in (None, False, argparse.SUPPRESS) and "Default:" not in text:
        text += f" Default: {action.default}."
    return f"- {names}{value}: {text}"


def group_items(group: argparse._ArgumentGroup, known: list[str]) -> list[str]:
    """An item for each flag of a group, and one for all those that are in `known`; these flags are added to it."""
    items = {(action.option_strings or [action.dest])[0]: flag_item(action) for action in group_actions(group)}
    repeated = [name for name, item in items.items() if item in known and name != "--debug"]
    shown = [item for name, item in items.items() if name not in repeated]
    known += shown
    if repeated:
        shown.insert(0, f"- As for [`hf-gist select`](#hf-gist-select): {', '.join(f'`{name}`' for name in repeated)}")
    return shown


def group_actions(group: argparse._ArgumentGroup) -> list[argparse.Action]:
    return [action for action in group._group_actions if action.dest != "help"]


def command_section(name: str, parser: argparse.ArgumentParser, known: list[str]) -> list[str]:
    help_text = COMMANDS[name].help
    lines = [f"## hf-gist {name}", "", help_text[:1].upper() + help_text[1:] + ".", ""]
    for group in parser._action_groups:
        title = (group.title or "").capitalize().replace("Lora", "LoRA").replace("gistconfig", "GISTConfig")
        if group.title in FIELD_GROUPS:
            cls = FIELD_GROUPS[group.title].__name__
            lines += [f"**{title}**: every setting of [{cls}](settings.md#{cls.lower()}) is a flag.", ""]
        elif group_actions(group):
            lines += [f"**{title}**", "", *group_items(group, known), ""]
    return lines


def commands_page() -> str:
    parser = build_parser()
    parsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    lines = [
        "# Command line",
        "",
        NOTE,
        "",
        "Exit codes: 0; 2 for invalid input; 1 for other errors; 130 after Ctrl-C.",
        "",
    ]
    known: list[str] = []
    for name in COMMANDS:
        lines += command_section(name, parsers[name], known if name in GROUPS else [])
    return "\n".join(lines)


# ---- Files ----


def index_page() -> str:
    names = sorted((name for name in hf_gist.__all__ if not name.startswith("__")), key=str.lower)
    lines = ["# Reference", "", NOTE, "", "Written from docstrings and flags.", "", "## Python", ""]
    for name in [*names, WarmupSettings.__name__]:
        thing = getattr(hf_gist, name, WarmupSettings)
        lines.append(f"- [`{name}`](reference/{page_of(name)}.md#{name.lower()}): {summary(thing)}")
    lines += ["- [Warnings](reference/trainers.md#warnings) that scripts can filter", "", "## Command line", ""]
    lines += [f"- [`hf-gist {name}`](reference/commands.md#hf-gist-{name}): {c.help}" for name, c in COMMANDS.items()]
    return "\n".join([*lines, ""])


def pages() -> dict[Path, str]:
    """The text of each page of the reference."""
    folder = GUIDES / "reference"
    made = {
        GUIDES / "reference.md": index_page(),
        folder / "settings.md": settings_page(),
        folder / "commands.md": commands_page(),
        **{folder / f"{page}.md": python_page(page) for page in PAGES},
    }
    return {path: text.rstrip("\n") + "\n" for path, text in made.items()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
