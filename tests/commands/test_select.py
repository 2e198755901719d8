"""`hf-gist select` as a user runs it."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import yaml
from datasets import Dataset
from safetensors.torch import load_file

from hf_gist import GISTConfig, Selection
from hf_gist.commands import warmed
from hf_gist.commands.main import COMMANDS, _finite, main
from hf_gist.commands.select import scoring
from hf_gist.commands.select.earlier import say_replaced
from hf_gist.costs.ledger import CostLedger
from hf_gist.errors import NoEffectWarning
from hf_gist.training.warmup import rising_steps
from tests.helpers.words import chats, save_model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    save_model(folder / "model")
    Dataset.from_list(chats(80)).to_json(folder / "pool.jsonl")
    Dataset.from_list([row for row in chats(16) if row["source"] == "family1"]).to_json(folder / "targets.jsonl")
    return folder


def flags(files, output, *more):
    return [
        "select",
        *("--model_name_or_path", str(files / "model")),
        *("--train_file", str(files / "pool.jsonl")),
        *("--target_file", str(files / "targets.jsonl")),
        *("--output_dir", str(output), "--source_column", "source", "--lora_target_modules", "q_proj, v_proj"),
        *("--learning_rate", "1e-2", "--per_device_train_batch_size", "4", "--warmup_ratio", "0.5"),
        *more,
    ]


@pytest.fixture(scope="module")
def run(files):
    output = files / "out"
    assert main(flags(files, output, "--budget", "0.1")) == 0
    return output


@pytest.mark.figures
def test_select_writes_artifacts_rows_and_pictures(files, run):
    selection = Selection.load(run)
    assert len(selection.indices) == 8 and selection.config == GISTConfig(
        budget=0.1, source_column="source", warmup_ratio=0.5
    )
    rows = [json.loads(line) for line in (run / "selected.jsonl").read_text().splitlines()]
    pool = [json.loads(line) for line in (files / "pool.jsonl").read_text().splitlines()]
    assert rows == [pool[i] for i in selection.indices]
    assert {"scores.png", "spectrum.png", "warmup_adapter"} <= {path.name for path in run.iterdir()}


def test_the_trained_adapter_gives_the_same_selection_again(files, run, capsys):
    again = files / "again"
    more = ("--adapter_name_or_path", str(run / "warmup_adapter"), "--budget", "0.1", "--output_format", "parquet")
    assert main(flags(files, again, *more)) == 0
    assert Selection.load(again).indices == Selection.load(run).indices
    printed = capsys.readouterr().out
    assert "GIST: kept 8 of 80 rows (10.00%)" in printed and "family1" in printed and "\nwarm-up" not in printed
    assert "\nscoring" in printed and "Selecting cost" in printed
    assert Dataset.from_parquet(str(again / "selected.parquet"))["source"]


def test_from_scores_chooses_again_without_a_model(files, run, tmp_path):
    flags = ["select", "--from_scores", str(run), "--output_dir", str(tmp_path), "--budget", "5"]
    flags += [
        "--strategy",
        "round_robin",
        "--target_group_column",
        "source",
        "--train_file",
        str(files / "pool.jsonl"),
    ]
    assert main(flags) == 0
    got = Selection.load(tmp_path)
    expected = Selection.load(run).reselect(budget=5, strategy="round_robin", target_group_column="source")
    assert got.indices == expected.indices and got.config.strategy == "round_robin"
    assert len((tmp_path / "selected.jsonl").read_text().splitlines()) == 5


def test_yaml_gives_everything_and_flags_override_it(files, run, tmp_path):
    values = {"from_scores": str(run), "output_dir": str(tmp_path / "a"), "budget": 3, "rank": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    assert main(["select", "--config", str(tmp_path / "run.yaml"), "--rank", "1"]) == 0
    got = Selection.load(tmp_path / "a")
    assert len(got.indices) == 3 and got.rank == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`--output_dir` is missing"),
        (["--output_dir", "o"], "Give exactly one of `--train_file` and `--dataset_name`"),
        (["--output_dir", "o", "--train_file", "{pool}"], "`--model_name_or_path` is missing"),
        (["--output_dir", "o", "--from_scores", "nowhere"], "nowhere/coordinates.safetensors does not exist"),
        (["--output_dir", "o", "--budget", "0"], "`budget` must be a fraction"),
        (["--config", "{yaml}"], "unknown key(s): budgets"),
        (["--config", "missing.yaml"], "`--config missing.yaml` cannot be read"),
    ],
)
def test_mistakes_are_named_without_a_traceback(files, tmp_path, capsys, arguments, message):
    (tmp_path / "bad.yaml").write_text("budgets: 3\n")
    known = {"{pool}": str(files / "pool.jsonl"), "{yaml}": str(tmp_path / "bad.yaml")}
    assert main(["select", *[known.get(a, a) for a in arguments]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-gist: error: ") and message in error


def test_scores_of_another_pool_are_refused_before_rows_are_written(files, run, tmp_path, capsys):
    flags = ["select", "--from_scores", str(run), "--output_dir", str(tmp_path / "o"), "--train_file"]
    for rows in (chats(8), chats(80)[::-1]):
        Dataset.from_list(rows).to_json(tmp_path / "other.jsonl")
        assert main([*flags, str(tmp_path / "other.jsonl")]) == 2
        error = capsys.readouterr().err
        assert f"The pool given ({len(rows)} rows) is not the one that was scored" in error
    assert not (tmp_path / "o").exists()


def test_flags_that_need_scoring_are_refused_with_from_scores(run, tmp_path, capsys):
    flags = ["select", "--from_scores", str(run), "--output_dir", str(tmp_path), "--seed", "1", "--lora_r", "4"]
    assert main(flags) == 2
    assert "--lora_r, --seed would need new scoring" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (("--target_group_column", "typo"), "`target_group_column='typo'` is not a column"),
        (("--source_column", "typo"), "`source_column='typo'` is not a column"),
        (("--budget", "0.001"), "selects nothing"),
        (("--max_length", "0"), "`--max_length 0` must be at least 1"),
        (("--eval_file", "nowhere.jsonl"), "`--eval_file nowhere.jsonl`: no such file"),
        (("--score_layers", "9"), "the adapter is on 2 blocks only"),
        (("--warmup_steps", "500"), "`warmup_steps=500` takes"),
        (("--scoring_cost", "0.3", "--budget", "40"), "`scoring_cost=0.3` pays for scoring"),
        (("--scoring_cost", "0.01"), "pays for scoring 0 rows"),
    ],
)
def test_mistakes_show_before_the_warm_up(files, tmp_path, capsys, flag, message):
    assert main(flags(files, tmp_path / "o", *flag)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_a_column_named_label_is_not_taken_for_the_labels(files, tmp_path):
    rows = [row | {"label": i % 3} for i, row in enumerate(chats(80))]
    Dataset.from_list(rows).to_json(tmp_path / "pool.jsonl")
    arguments = flags(files, tmp_path / "o", "--budget", "6")
    arguments[arguments.index("--train_file") + 1] = str(tmp_path / "pool.jsonl")
    assert main(arguments) == 0
    assert len(Selection.load(tmp_path / "o").indices) == 6


def test_selected_lines_are_the_very_lines_of_the_pool(files, tmp_path):
    lines = [
        json.dumps(row | {"when": "2021-03-04T05:06:07", "x": 0.123456789012345, "word": "é"}, ensure_ascii=i % 2 == 0)
        for i, row in enumerate(chats(80))
    ]
    (tmp_path / "pool.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = flags(files, tmp_path / "o", "--budget", "6")
    arguments[arguments.index("--train_file") + 1] = str(tmp_path / "pool.jsonl")
    assert main(arguments) == 0
    written = (tmp_path / "o" / "selected.jsonl").read_text(encoding="utf-8").splitlines()
    assert written == [lines[i] for i in Selection.load(tmp_path / "o").indices]


def test_every_config_field_is_a_flag_and_the_command_is_installed():
    command = shutil.which("hf-gist") or [sys.executable, "-m", "hf_gist"]
    command = [command] if isinstance(command, str) else command
    text = subprocess.run([*command, "select", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(f"--{name}" in text for name in GISTConfig().to_dict())


@pytest.mark.parametrize(
    ("share", "steps", "rising"),
    [(0.03, 1, 0), (0.03, 2, 1), (0.03, 100, 3), (0.9, 4, 3), (0.0, 5, 0), (10, 75, 10), (10, 5, 4), (1, 1, 0)],
)
def test_the_learning_rate_never_rises_in_the_only_step(share, steps, rising):
    assert rising_steps(share, steps) == rising


def test_a_warm_up_of_one_step_changes_the_adapter(files, tmp_path):
    assert main(flags(files, tmp_path, "--warmup_steps", "1")) == 0
    weights = load_file(tmp_path / "warmup_adapter" / "adapter_model.safetensors")
    assert any(float(values.abs().max()) > 0 for name, values in weights.items() if "lora_B" in name)
    assert float(Selection.load(tmp_path).measurements.norms.min()) > 0


def test_an_interrupted_command_uses_its_warm_up_again(files, tmp_path, monkeypatch):
    arguments = flags(files, tmp_path, "--budget", "0.1")
    trained, original = [], warmed.warm_up
    monkeypatch.setattr(warmed, "warm_up", lambda *args: trained.append(1) or original(*args))

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "select", killed)
    assert main(arguments) == 130
    monkeypatch.undo()
    monkeypatch.setattr(warmed, "warm_up", lambda *args: trained.append(1) or original(*args))
    assert main(arguments) == 0 and len(trained) == 1
    again = tmp_path / "again"
    assert main(flags(files, again, "--budget", "0.1")) == 0
    assert Selection.load(again).indices == Selection.load(tmp_path).indices
    # another learning rate is another warm-up
    assert main([*arguments, "--learning_rate", "1e-3"]) == 0 and len(trained) == 3


def test_evaluation_rows_are_kept_out_and_the_guard_can_be_switched_off(files, run, tmp_path):
    pool = [json.loads(line) for line in (files / "pool.jsonl").read_text().splitlines()]
    best = Selection.load(run).indices[0]
    (tmp_path / "eval.jsonl").write_text(json.dumps(pool[best]) + "\n")
    adapter = ("--adapter_name_or_path", str(run / "warmup_adapter"), "--budget", "0.1")
    more = (*adapter, "--eval_file", str(tmp_path / "eval.jsonl"))
    assert main(flags(files, tmp_path / "kept_out", *more)) == 0
    assert best not in Selection.load(tmp_path / "kept_out").indices
    assert main(flags(files, tmp_path / "off", *more, "--no-drop_target_duplicates")) == 0
    off = Selection.load(tmp_path / "off")
    assert not off.config.drop_target_duplicates and off.measurements.leaked[off.indices].any()


def test_a_dry_run_writes_nothing_and_knows_the_counts(files, run, tmp_path, capsys):
    output = tmp_path / "dry"
    assert main(flags(files, output, "--budget", "0.1", "--dry_run")) == 0
    assert not output.exists() and "time, scoring" in capsys.readouterr().out
    assert main(flags(files, output, "--budget", "0.1", "--dry_run", "--json")) == 0
    plan = json.loads(capsys.readouterr().out)
    done = {phase.phase: phase for phase in Selection.load(run).costs.phases}
    assert plan["counts"]["candidates"] == done["scoring"].rows and plan["counts"]["selected"] == 8
    assert plan["counts"]["candidate_tokens"] == done["scoring"].tokens
    assert plan["counts"]["warmup_steps"] * 4 == done["warm-up"].rows
    assert list(plan["seconds"]) == ["warm-up", "targets", "scoring"] and min(plan["seconds"].values()) >= 0
    for more in (["--scorer", "less"], ["--scoring_cost", "0.6"], ["--scorer", "rds_plus"], ["--strategy", "random"]):
        assert main(flags(files, output, "--dry_run", *more)) == 0
    trained = ["--adapter_name_or_path", str(run / "warmup_adapter")]
    capsys.readouterr()
    assert main(flags(files, output, "--dry_run", "--json", *trained)) == 0
    assert "warm-up" not in json.loads(capsys.readouterr().out)["seconds"]
    assert main(["select", "--from_scores", str(run), "--output_dir", str(output), "--dry_run"]) == 2
    assert not output.exists()


@pytest.mark.parametrize("steps", ["1", "3"])
def test_a_dry_run_plans_what_the_run_then_does(files, tmp_path, capsys, steps):
    more = ("--scorer", "less", "--warmup_steps", steps, "--scoring_cost", "0.8", "--budget", "0.05")
    assert main(flags(files, tmp_path / "dry", *more, "--dry_run", "--json")) == 0
    planned = json.loads(capsys.readouterr().out)["scoring_plan"]
    assert main(flags(files, tmp_path / "run", *more)) == 0
    done = Selection.load(tmp_path / "run")
    assert done.manifest["scoring_plan"] == planned and done.costs.selection_passes() <= 0.8


def test_a_dry_run_says_what_each_later_selection_of_a_training_costs(files, tmp_path, capsys):
    def planned(*more):
        assert main(flags(files, tmp_path / "dry", "--budget", "4", "--dry_run", "--json", *more)) == 0
        return json.loads(capsys.readouterr().out)

    assert planned()["later_selections"] is None
    whole = planned("--reselect_every", "2")
    candidates = whole["counts"]["candidates"]
    assert whole["later_selections"]["every"] == 2 and whole["later_selections"]["rows"] == candidates
    part = planned("--reselect_every", "1", "--reselect_share", "0.5", "--scorer", "less")["later_selections"]
    assert candidates * 0.4 < part["rows"] <= candidates / 2 + 1 and part["passes"] is None
    priced = planned("--reselect_every", "1", "--scoring_cost", "0.6")
    assert priced["later_selections"]["passes"] <= 0.6
    assert priced["later_selections"]["rows"] >= priced["scoring_plan"]["scored"], "no warm-up to pay for"
    assert planned("--reselect_every", "1", "--strategy", "random")["later_selections"]["rows"] == 0
    assert main(flags(files, tmp_path / "dry", "--budget", "4", "--dry_run", "--reselect_every", "3")) == 0
    assert "`reselect_every=3`: this command selects once." in capsys.readouterr().out


def test_choosing_again_is_said_to_have_no_effect_where_nothing_is_trained(files, run, tmp_path):
    trained = ("--adapter_name_or_path", str(run / "warmup_adapter"), "--budget", "0.1")
    with pytest.warns(NoEffectWarning, match="`reselect_every=2` has no effect in `select.*` and `hf-gist select`"):
        assert main(flags(files, tmp_path, *trained, "--reselect_every", "2")) == 0
    assert Selection.load(tmp_path).indices == Selection.load(run).reselect(budget=0.1).indices
    with pytest.warns(NoEffectWarning, match="no effect in a selection from a stream"):
        streamed = (*trained[:2], "--budget", "4", "--streaming", "--reselect_every", "1")
        assert main(flags(files, tmp_path / "stream", *streamed)) == 0
    # the report would show rows of an earlier stream
    assert main(flags(files, tmp_path / "stream", *streamed[:-2], "--output_format", "parquet")) == 0
    assert {path.name for path in (tmp_path / "stream").glob("selected.*")} == {"selected.parquet"}


def test_settings_of_a_warm_up_have_no_effect_on_a_trained_adapter(files, run, tmp_path, capsys):
    trained = ("--adapter_name_or_path", str(run / "warmup_adapter"), "--budget", "0.1")
    message = "`--learning_rate`, `--lora_r`, .*`--warmup_ratio`: no effect with `--adapter_name_or_path`"
    with pytest.warns(NoEffectWarning, match=message):
        assert main(flags(files, tmp_path, *trained, "--lora_r", "2")) == 0
    assert main(flags(files, tmp_path / "o", "--from_scores", str(run), "--streaming")) == 2
    assert "`--streaming` scores a pool; give one of them" in capsys.readouterr().err


def test_json_has_no_numbers_that_are_none():
    nan, infinite = float("nan"), float("inf")
    found = _finite({"runs": [{"loss": nan, "rows": 3}, (infinite, 1.5, "a", None, True)]})
    assert found == {"runs": [{"loss": None, "rows": 3}, [None, 1.5, "a", None, True]]}


def test_json_on_stdout_is_nothing_but_the_result(files, run, tmp_path, capsys):
    more = ("--adapter_name_or_path", str(run / "warmup_adapter"), "--budget", "0.1", "--json")
    assert main(flags(files, tmp_path, *more)) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["gist_rows"] == 8 and result["selected_rows"] == str(tmp_path / "selected.jsonl")
    assert [phase["phase"] for phase in result["costs"]["phases"]][0] == "targets" and "kept rows" in printed.err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("broken"), 1)])
def test_exit_codes(files, tmp_path, monkeypatch, capsys, error, code):
    def fail(*_):
        raise error

    monkeypatch.setitem(COMMANDS, "select", dataclasses.replace(COMMANDS["select"], run=fail))
    assert main(flags(files, tmp_path)) == code
    assert "Traceback" not in capsys.readouterr().err
    if code == 1:
        with pytest.raises(RuntimeError, match="broken"):
            main([*flags(files, tmp_path), "--debug"])


def test_a_selection_from_scores_without_the_pool_says_that_no_rows_are_written(files, run, tmp_path, capsys):
    again = ["select", "--from_scores", str(run), "--output_dir", str(tmp_path), "--budget"]
    assert main([*again, "5"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "no rows written: add --train_file or --dataset_name" in told and "earlier selection" not in told
    assert not (tmp_path / "selected.jsonl").exists()
    pool = ["--train_file", str(files / "pool.jsonl")]
    assert main([*again, "6", *pool]) == 0
    told = capsys.readouterr().out
    assert "The earlier selection of 5 rows in" in told and "no rows written" not in told
    assert main([*again, "7", *pool, "--output_format", "parquet"]) == 0
    assert "The earlier selection of 6 rows in" in capsys.readouterr().out
    # rows of an earlier selection must not be taken for those of this one
    assert not (tmp_path / "selected.jsonl").exists()
    assert main([*again, "1"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "selected.parquet of the earlier selection removed" in told and not (tmp_path / "selected.parquet").exists()
    assert main([*again, "2"]) == 0
    assert "The earlier selection of 1 row in" in capsys.readouterr().out


def test_a_selection_from_scores_has_the_costs_of_these_scores(run, tmp_path):
    shutil.copytree(run, tmp_path / "o")
    costs = json.loads((run / "costs.json").read_text())
    (tmp_path / "o" / "costs.json").write_text(json.dumps(costs | {"phases": [{"phase": "other", "seconds": 1.0}]}))
    (tmp_path / "o" / "selections.json").write_text("[]")
    assert main(["select", "--from_scores", str(run), "--output_dir", str(tmp_path / "o"), "--budget", "5"]) == 0
    ledger = Selection.load(tmp_path / "o").costs
    scored = CostLedger.load(run)
    assert [phase.phase for phase in ledger.phases] == [phase.phase for phase in scored.phases]
    assert ledger.selection_passes() == scored.selection_passes()
    # what a pass over the new rows costs is not known
    assert ledger.break_even().endswith("epochs on the whole pool.") and ledger.kept_pass_flops is None
    assert not (tmp_path / "o" / "selections.json").exists()
    # scores without costs
    shutil.copytree(run, tmp_path / "w", ignore=shutil.ignore_patterns("costs.json"))
    scores = ("--from_scores", str(tmp_path / "w"), "--budget", "5")
    assert main(["select", *scores, "--output_dir", str(tmp_path / "o")]) == 0
    assert not (tmp_path / "o" / "costs.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"manifest.json": '{"selected": 21}'}, "selection of 21 rows in"),
        ({"stream.json": '{"indices": [4, 5]}'}, "selection of 2 rows in"),
        ({"manifest.json": "{}"}, "selection in"),
        ({"manifest.json": "{"}, "selection in"),
        ({"manifest.json": '{"selected": 21}', "partial/key.json": "{}"}, None),
        ({"warmup_adapter/warmup.json": "{}"}, None),
    ],
)
def test_an_earlier_selection_is_named_unless_a_run_resumes(tmp_path, capsys, content, said):
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    say_replaced(tmp_path)
    told = capsys.readouterr().out
    assert told == "" if said is None else f"The earlier {said}" in told


def test_a_stream_does_not_go_into_the_folder_of_another_selection(files, run, capsys):
    stream = ("--streaming", "--adapter_name_or_path", str(run / "warmup_adapter"), "--budget", "5")
    assert main(flags(files, run, *stream)) == 2
    assert "has a selection from a whole pool (manifest.json)" in capsys.readouterr().err
