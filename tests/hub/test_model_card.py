"""Model cards: the section, the metadata, and what is kept of an existing card."""

import dataclasses
import html
import json
import os
import re

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from hf_gist import GASTConfig, GISTConfig
from hf_gist.costs.ledger import CostLedger, PhaseCost
from hf_gist.hub.card_metrics import evaluation_results
from hf_gist.hub.model_card import BEGIN, END, write_card
from hf_gist.hub.run import Run, final_step, find_run
from hf_gist.utils.disk import write_json
from tests.helpers.hub_runs import MANIFEST, select_folder, selection
from tests.hub.test_markdown import HOSTILE


LOSS = EvalResult(
    task_type="text-generation", dataset_type="jane/test", dataset_name="jane/test", metric_type="loss", metric_value=1.5
)  # fmt: skip


def trained(folder, **more):
    """A run whose model was trained on its selection."""
    made = selection(["a"] * 15 + ["b"] * 5)
    made.save(folder / "gist")
    return Run(folder, made, folder / "gist", repo_id="jane/model", **more)


def test_a_new_card(tmp_path):
    card = ModelCard.load(write_card(trained(tmp_path, gast=GASTConfig(keep=3), results=[LOSS])))
    data = card.data.to_dict()
    assert data["tags"] == ["hf-gist", "gist", "gast"] and data["base_model"] == "meta/small"
    assert data["datasets"] == ["jane/pool"] and data["library_name"] == "peft"
    assert data["model-index"] == [
        {
            "name": "model",
            "results": [
                {
                    "task": {"type": "text-generation"},
                    "dataset": {"name": "jane/test", "type": "jane/test"},
                    "metrics": [{"type": "loss", "value": 1.5}],
                }
            ],
        }
    ]
    text = card.text
    for part in (
        "# model",
        "**5 of 20 rows**",
        "| `a` | ",
        "| pool | `jane/pool` | `" + "b" * 40,
        "`sha256 cccccccccccccccc`",
        "2 rows of the pool are also in the target set (1 with the same tokens), excluded",
        "budget: 0.25",
        "keep: 3",
        "hf://jane/model",
        "--dataset_revision " + "b" * 40,
        "--lora_r 8",
        "2602.18584",
        "2603.09865",
        "### Limitations",
        "rank 3 of 3",
        "`3.11`",
    ):
        assert part in text, part
    assert GISTConfig.from_pretrained(tmp_path) == selection(["a"] * 20).config
    assert GASTConfig.from_pretrained(tmp_path).keep == 3
    for image in re.findall(r"\]\((.+?\.png)\)", text):
        assert (tmp_path / image).is_file()
    assert "](gist/scores.png)" in text


def test_writing_a_card_twice_changes_nothing(tmp_path):
    run = trained(tmp_path, results=[LOSS])
    once = write_card(run).read_text()
    assert write_card(run).read_text() == once and once.count(BEGIN) == once.count(END) == 1


def test_an_existing_card_keeps_its_text_and_metadata(tmp_path):
    data = ModelCardData(
        license="mit", tags=["mine", "gist"], datasets="jane/other", model_name="m", eval_results=[LOSS]
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n# Mine \\1 \\g<0>\n\nText.\n").save(tmp_path / "README.md")
    newer = EvalResult(**(vars(LOSS) | {"metric_value": 1.25}))
    write_card(trained(tmp_path, results=[newer]))
    with (tmp_path / "README.md").open("a") as opened:
        opened.write("\nMore of mine.\n")
    card = ModelCard.load(write_card(trained(tmp_path, results=[newer])))
    assert card.text.startswith("\n# Mine \\1 \\g<0>\n\nText.\n\n") and card.text.endswith("\nMore of mine.\n")
    assert card.data.license == "mit" and card.data.tags == ["mine", "gist", "hf-gist"]
    assert card.data.datasets == ["jane/other", "jane/pool"]
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("loss", 1.25)]


def test_without_an_evaluation_there_are_no_metrics(tmp_path):
    card = ModelCard.load(write_card(trained(tmp_path)))
    assert "model-index" not in card.data.to_dict() and "### Evaluation" not in card.text


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_in_their_cells(tmp_path, name):
    manifest = json.loads(json.dumps(MANIFEST))
    manifest["train_dataset"] = {"rows": 20, "file": name, "sha256": name}
    manifest["model"] = {"name_or_path": name, "revision": None, "class": name}
    made = selection([name] * 10 + ["plain"] * 10, manifest)
    made.save(tmp_path / "gist")
    run = Run(tmp_path, made, tmp_path / "gist", GASTConfig(source_column=name), "jane/model")
    text = write_card(run).read_text()
    assert write_card(run).read_text() == text
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == {
        "library_name": "peft",
        "tags": ["hf-gist", "gist", "gast"],
    }
    assert "\n---\n" not in REGEX_YAML_BLOCK.sub("", text)
    prose = re.sub(r"^(`{3,}).*?^\1$", "", REGEX_YAML_BLOCK.sub("", text), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"<script|\]\(https|^tags:", prose, flags=re.MULTILINE)
    assert prose.count("</details>") == prose.count("<details>") == 2
    assert prose.count(BEGIN) == prose.count(END) == 1
    for table in re.findall(r"(?:^\|.*\n)+", prose, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_local_paths_are_not_on_the_card(tmp_path):
    home = str(tmp_path / "home" / "jane")
    data = ModelCardData(
        base_model=f"{home}/llama", tags=[f"base_model:adapter:{home}/llama", "base_model:adapter:a/b"]
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n").save(tmp_path / "README.md")
    write_card(trained(tmp_path))
    text = (tmp_path / "README.md").read_text()
    assert "home" not in text and "base_model:adapter:a/b" in text and "base_model: meta/small" in text
    write_card(trained(tmp_path, gast=GASTConfig(support=f"{home}/mine/s.safetensors")))
    published = (tmp_path / "README.md").read_text() + (tmp_path / "gast_config.json").read_text()
    assert "home" not in published and published.count("s.safetensors") == 2


def test_costs_are_on_the_card_if_there_is_a_ledger(tmp_path):
    run = trained(tmp_path)
    assert "### Cost" not in write_card(run).read_text()
    phases = (PhaseCost("scoring", 12.5, rows=20, tokens=100, forward_flops=10.0, backward_flops=20.0),)
    CostLedger(phases, 100.0, 10.0).save(tmp_path / "gist")
    text = write_card(run).read_text()
    assert (
        "| scoring | 12.5 | 20 | 100 |" in text
        and "Selecting cost as much computation as training for 0.30 epochs on the whole pool." in text
    )


def test_the_folder_of_a_selection_describes_its_warm_up_adapter(tmp_path):
    run = find_run(select_folder(tmp_path / "out"), "jane/choice")
    text = write_card(run).read_text()
    assert not run.trained and "was not trained on the selection" in text and "![Scores](scores.png)" in text
    assert "This model was trained on" not in text


def test_a_baseline_is_not_tagged_as_the_paper_s_method(tmp_path):
    made = selection(strategy="random")
    made.save(tmp_path)
    card = ModelCard.load(write_card(find_run(tmp_path)))
    assert card.data.tags == ["hf-gist"] and "chosen by random draw" in card.text
    assert "similarity to the target set" not in card.text


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no run of hf_gist"):
        find_run(tmp_path)


def history(*entries):
    return [{"step": step} | values for step, values in entries]


def test_metrics_are_those_of_the_weights_that_are_pushed(tmp_path):
    logs = history(
        (5, {"eval_loss": 2.0, "eval_runtime": 1.0, "eval_samples_per_second": 3.0}),
        (10, {"eval_loss": 1.0, "eval_accuracy": 0.5, "eval_broken": float("nan")}),
        (10, {"train_runtime": 9.0, "loss": 3.0}),
    )
    at = {r.metric_type: r.metric_value for r in evaluation_results(logs, 10, "LlamaForCausalLM")}
    assert at == {"loss": 1.0, "accuracy": 0.5}
    assert [r.metric_value for r in evaluation_results(logs, 5, "LlamaForCausalLM")] == [2.0]
    # an evaluation after the best weights were loaded is theirs, whatever step the trainer logs
    after = [*logs, {"step": 10, "eval_loss": 1.75}]
    assert [r.metric_value for r in evaluation_results(after, 5, "LlamaForCausalLM")] == [1.75]
    assert evaluation_results(logs, 7, "LlamaForCausalLM") == [] == evaluation_results(logs, 10, "Strange")


def test_metrics_are_those_of_the_adapter_that_was_restored():
    made = selection()
    made = dataclasses.replace(made, manifest=made.manifest | {"target_loss": {"final_step": 4}})
    assert final_step(9, made) == final_step(9, None) == 9
    stops = dataclasses.replace(made.config, stop_when_target_rises=True)
    assert final_step(9, dataclasses.replace(made, config=stops)) == 4


def test_metrics_of_a_training_that_went_on_replace_those_of_the_card(tmp_path):
    selection().save(tmp_path / "gist")
    (tmp_path / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    for step in (4, 8):
        logs = [{"step": step, "eval_loss": step / 2}]
        write_json(tmp_path / "trainer_state.json", {"global_step": step, "log_history": logs})
        os.utime(tmp_path / "trainer_state.json", (step, step) if step == 4 else None)
        write_card(find_run(tmp_path))
        if step == 4:
            os.utime(tmp_path / "README.md", (5, 5))
        assert [r.metric_value for r in find_run(tmp_path).results] == [step / 2]


def test_every_evaluation_set_is_on_the_card(tmp_path):
    leaks = {"target_dataset": {"rows": [], "exact": 0}, "eval_dataset['a|b']": {"rows": [1, 2], "exact": 1}}
    made = selection()
    made = dataclasses.replace(made, manifest=made.manifest | {"leaks": leaks})
    made.save(tmp_path / "gist")
    text = write_card(Run(tmp_path, made, tmp_path / "gist")).read_text(encoding="utf-8")
    assert "no evaluation set was given" not in text and "no row of the pool is in the target set" in text
    plain = re.sub("</?code>|`", "", html.unescape(text)).replace("\\|", "|")
    assert "2 rows of the pool are also in the evaluation set eval_dataset['a|b'] (1 with the same tokens)" in plain


def test_several_evaluation_sets_have_separate_results():
    logs = history((3, {"eval_a_loss": 1.0, "eval_a_b_loss": 2.0}))
    card = ModelCardData(
        model_name="m", eval_results=evaluation_results(logs, 3, "CAUSAL_LM", {"a": None, "a_b": None})
    )
    found = {r["dataset"]["name"]: r["metrics"][0]["value"] for r in card.to_dict()["model-index"][0]["results"]}
    assert found == {"a": 1.0, "a_b": 2.0}


def test_metrics_from_the_saved_state_of_a_trainer(tmp_path):
    selection().save(tmp_path / "gist")
    (tmp_path / "adapter_config.json").write_text('{"task_type": "SEQ_CLS"}')
    for step in (4, 8):
        logs = [{"step": step, "eval_loss": step / 2}]
        (tmp_path / f"checkpoint-{step}").mkdir()
        write_json(tmp_path / f"checkpoint-{step}" / "trainer_state.json", {"global_step": step, "log_history": logs})
    results = find_run(tmp_path).results
    state = tmp_path / "checkpoint-8" / "trainer_state.json"
    write_json(state, json.loads(state.read_text()) | {"best_global_step": 4})
    # it is not known which step the weights in the folder are of
    assert find_run(tmp_path).results == []
    assert [(r.task_type, r.metric_value, r.dataset_type) for r in results] == [
        ("text-classification", 4.0, "unknown")
    ]


def test_every_value_of_a_template_is_escaped(tmp_path):
    folder = tmp_path / "<b>a</b> *x* [y](z)"
    made = selection()
    made.save(folder / "gist")
    title = write_card(Run(folder, made, folder / "gist")).read_text().split("# ")[1].splitlines()[0]
    assert not re.search(r"[<>*\[\]]", title) and html.unescape(title) == folder.name


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {},
            "each transformer block was updated by 50% of the samples of the batch on each device, drawn by how well each ",
        ),
        (
            {"mode": "random", "keep": 3, "group_by": "module"},
            "each adapted module was updated by 3 of the samples of the ",
        ),
        (
            {"mode": "topk", "support": "batch"},
            "those whose gradients align best with the mean gradient of the batch.",
        ),
        (
            {"mode": "positive", "support": "x.safetensors"},
            "whose gradients have a cosine above 0 with a saved gradient.",
        ),
        (
            {"group_by": "model", "support": "momentum"},
            "all adapted modules were updated by 50% of the samples of the batch",
        ),
        ({"group_by": "model", "mode": "topk", "redundancy": True}, "(the greedy rule of GREATS)."),
        ({"mode": "all"}, 'all samples updated all layers (`mode="all"` is plain training).'),
    ],
)
def test_a_card_says_how_samples_update_layers(options, text, tmp_path):
    config = GASTConfig(**options)
    card = " ".join(write_card(trained(tmp_path, gast=config)).read_text(encoding="utf-8").split())
    assert text in card
    assert "support_dataset" not in card


def test_a_card_names_the_support_rows_that_were_used(tmp_path):
    manifest = {"support_dataset": {"rows": 4}}
    card = write_card(trained(tmp_path, gast=GASTConfig(), gast_manifest=manifest)).read_text(encoding="utf-8")
    assert "gast_config=gast, support_dataset=targets)" in card
