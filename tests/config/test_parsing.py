"""Text that is no configuration: every failure is a ValueError that says what is wrong."""

import random

import pytest

from hf_gist import GASTConfig, GISTConfig
from hf_gist.commands.main import main


PIECES = (
    *(
        "budget: ",
        "rank: ",
        "source_max: ",
        "strategy",
        ": ",
        "- ",
        "\n",
        "  ",
        "\t",
        "{",
        "}",
        "[",
        "]",
        ",",
        '"',
        "'",
    ),
    *(
        "&a ",
        "*a",
        "!!int ''",
        "!!int",
        "!!float x",
        "!!bool 5",
        "!!timestamp x",
        "!!binary =",
        "!!set ",
        "!!python/x",
    ),
    *(
        "2026-99-99",
        "2026-01-01",
        "1e999",
        "9" * 400,
        ".nan",
        ".inf",
        "-.inf",
        "~",
        "NaN",
        "true",
        "0o",
        "0x",
        "1:2:3",
    ),
    *("%", "|", ">", "?", "#", "---\n", "...\n", "<<: ", "=", "\x00", "\ud800", "\x85", "\\u", "0.05", "5e-2", "null"),
)


def random_text(rng):
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 12)))


def mutated_text(rng):
    config = GISTConfig(budget=rng.choice([0.1, 7]), rank=3, source_column="source")
    text = list(rng.choice([config.to_yaml(), config.to_json()]))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text))
        text[at : at + rng.randint(0, 3)] = rng.choice(PIECES)
    return "".join(text)


@pytest.mark.parametrize("make", [random_text, mutated_text])
def test_every_failure_is_a_value_error(make):
    rng, failures = random.Random(0), 0
    for _ in range(600):
        text = make(rng)
        for read in (GISTConfig.from_yaml, GISTConfig.from_json):
            try:
                config = read(text)
            except ValueError as error:
                # not a subclass: those of the parsers and of Unicode have other arguments
                assert type(error) is ValueError and len(str(error)) < 3000, text
                failures += 1
            else:
                assert GISTConfig.from_json(config.to_json()) == config
    assert failures > 400


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        ("from_yaml", "budget: 5\nrank: [1", "^run.yaml is not valid YAML, line 2: expected ',' or ']'"),
        ("from_yaml", "budget: !!int ''", "^run.yaml is not valid YAML: string index out of range"),
        ("from_yaml", "budget: 2026-99-99", "^run.yaml is not valid YAML: month must be in 1..12"),
        ("from_yaml", "[" * 800, "^run.yaml is not valid YAML: it is nested too deeply"),
        ("from_yaml", "a\x00b", "^run.yaml is not valid YAML: .*special characters are not allowed"),
        ("from_json", '{"budget": 5,\n"rank" 3}', "^run.yaml is not valid JSON, line 2: Expecting ':' delimiter"),
        ("from_json", "[" * 100_000, "^run.yaml is not valid JSON: it is nested too deeply"),
        ("from_json", "9" * 5000, "^run.yaml is not valid JSON: Exceeds the limit|expected a mapping"),
        ("from_yaml", "[]", "expected a mapping of field names to values, got list"),
        ("from_yaml", "0", "expected a mapping of field names to values, got int"),
        ("from_yaml", "false", "expected a mapping of field names to values, got bool"),
        ("from_json", "null", "expected a mapping of field names to values, got NoneType"),
        ("from_yaml", "rank: &a [*a]", "`rank` must be int or null, got"),
        ("from_yaml", f"sample_from_top: 1{'0' * 400}", "`sample_from_top` must be float, got"),
        ("from_yaml", f"seed: 1{'0' * 400}", "`seed` must be int, got"),
    ],
)
@pytest.mark.parametrize("cls", [GISTConfig, GASTConfig])
def test_the_message_has_name_line_and_reason(cls, read, text, message):
    if cls is GASTConfig:
        message = message.replace("`sample_from_top` must be float, got", "unknown key").replace(
            "`rank` must be int or null, got", "unknown key"
        )
    with pytest.raises(ValueError, match=message) as caught:
        getattr(cls, read)(text, "run.yaml")
    assert type(caught.value) is ValueError


def test_aliases_of_aliases_are_refused_at_once():
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['x'] * 9)}]" for i in range(12)]
    with pytest.raises(ValueError, match="unknown key.*a0"):
        GISTConfig.from_yaml("\n".join(lines))
    inner = "\n".join(f"  {line}" for line in lines)
    with pytest.raises(ValueError, match="`source_column` must be str or null, got"):
        GISTConfig.from_yaml(f"source_column:\n{inner}\n")


def test_saved_files_and_the_command_name_the_file(tmp_path, capsys):
    (tmp_path / "gist_config.json").write_text('{"budget": 5,\n"rank" 3}')
    with pytest.raises(ValueError, match="`gist_config.json` is not valid JSON, line 2"):
        GISTConfig.from_pretrained(tmp_path)
    (tmp_path / "run.yaml").write_text("budget: 5\nrank: [1")
    flags = ["select", "--config", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path / "out")]
    assert main(flags) == 2
    assert f"`--config {tmp_path / 'run.yaml'}` is not valid YAML, line 2" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_bytes(b"budget: \xff")
    assert main(flags) == 2
    assert "cannot be read" in capsys.readouterr().err
