"""The docstring entries of settings: complete, true, and the source of `--help`."""

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest

from hf_gist.commands.flags import GROUPS
from hf_gist.commands.main import build_parser
from hf_gist.config import GASTConfig, GISTConfig, WarmupSettings
from hf_gist.config.documentation import setting_help, setting_texts


CLASSES = [GISTConfig, GASTConfig, WarmupSettings]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_has_an_entry_with_its_default(cls):
    fields = dataclasses.fields(cls)
    assert list(setting_texts(cls)) == [field.name for field in fields]
    doc = inspect.getdoc(cls)
    for field in fields:
        default = f'"{field.default}"' if isinstance(field.default, str) else repr(field.default)
        given = "*optional*" if field.default is None else f"defaults to `{default}`"
        assert re.search(rf"^    {field.name} \(.*, {re.escape(given)}\): ", doc, re.MULTILINE), field.name


@pytest.mark.parametrize("cls", CLASSES)
def test_the_help_is_the_first_sentence(cls):
    for name, text in setting_help(cls).items():
        assert text[0].isupper() or text[0].isdigit(), name
        assert text.endswith(".") and len(text) < 250, name
        assert setting_texts(cls)[name].replace("`", "").startswith(text)


def test_the_flags_have_the_help(capsys):
    for command, groups in GROUPS.items():
        with pytest.raises(SystemExit):
            build_parser().parse_args([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        for cls in groups:
            assert all(" ".join(text.split()) in shown for text in setting_help(cls).values()), command


def test_texts_are_one_line_each_and_the_help_is_their_first_sentence():
    @dataclasses.dataclass
    class Settings:
        """Two settings.

        Args:
            first (`int`, defaults to `3`): how many of the
                rows. More of them take longer, e.g. twice 1.5 s.
            second (`str`, *optional*): a name.

        Raises:
            ValueError: never.
        """

        first: int = 3
        second: str | None = None

    assert setting_texts(Settings) == {
        "first": "How many of the rows. More of them take longer, e.g. twice 1.5 s.",
        "second": "A name.",
    }
    assert setting_help(Settings) == {"first": "How many of the rows.", "second": "A name."}


def test_the_configurations_import_no_framework():
    heavy = {"torch", "transformers", "peft", "datasets"}
    code = f"import sys, hf_gist.config, hf_gist.config.documentation; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
