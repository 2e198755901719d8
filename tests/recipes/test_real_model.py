"""The benchmark on a real model: a whole run on a tiny one, and the accuracy against one answer at a time."""

import json
import random

import pytest
import torch

from tests import ROOT
from tests.helpers.tiny import base_model
from tests.helpers.words import save_model, tokenizer, varied


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "benchmarks"))
    import choices
    import real_model
    import real_model_table

    return choices, real_model, real_model_table


def questions(size, seed):
    """Test rows with two to four choices."""
    rng, rows = random.Random(seed), varied(size, seed)
    for row in rows:
        wrong = [" ".join(f"w{rng.randrange(80)}" for _ in range(rng.randint(1, 6))) for _ in range(rng.randint(1, 3))]
        right = row["messages"][-1]["content"]
        row["choices"] = sorted([right, *wrong])
        row["answer"] = row["choices"].index(right)
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def data(tmp_path):
    save_model(tmp_path / "model")
    rows, questioned = varied(60, 1), questions(12, 2)
    for number, name in enumerate(("one", "two")):
        write(tmp_path / f"target_{name}.jsonl", varied(5, 3 + number))
        write(tmp_path / f"test_{name}.jsonl", questioned[6 * number : 6 * number + 6])
    leaked = {"messages": questioned[0]["messages"], "source": "leak"}
    write(tmp_path / "pool.jsonl", [*rows, leaked])
    return tmp_path


def arguments(folder, *more):
    return [
        "--model", folder / "model", "--data", folder, "--output", folder / "out", "--targets", "one", "two",
        "--budget", "0.2", "--passes", "1", "--batch_size", "8", "--device", "cpu", "--seeds", "0", "1", *more,
    ]  # fmt: skip


def test_a_run_of_all_arms(data, modules, capsys):
    _, real_model, _ = modules
    report = real_model.main([str(value) for value in arguments(data)])
    assert report["missing"] == [] and report["about"]["pool"] == 60 and report["about"]["selected"] == 12
    # untrained, then random rows, three selections and the whole pool with two seeds, on two test sets
    assert len(report["results"]) == 2 * (1 + 5 * 2)
    by_arm = {}
    for found in report["results"]:
        by_arm.setdefault(found["arm"], []).append(found)
    trained = {arm: {found["rows"] for found in own} for arm, own in by_arm.items() if arm != real_model.UNTRAINED}
    assert trained.pop(real_model.WHOLE) == {60} and set(map(tuple, trained.values())) == {(12,)}
    assert all(found["select_seconds"] > 0 for arm in real_model.SELECTIONS for found in by_arm[arm])
    assert len({found["loss"] for found in report["results"]}) == len(report["results"])
    assert json.loads((data / "out" / "results.json").read_text(encoding="utf-8")) == report
    text = (data / "out" / "results.md").read_text(encoding="utf-8")
    assert text.count("\n| untrained |") == 2 and "Missing" not in text
    assert text in capsys.readouterr().out


def test_a_run_without_time_measures_the_untrained_model_and_names_the_rest(data, modules):
    _, real_model, _ = modules
    report = real_model.main([str(value) for value in arguments(data, "--minutes", "0", "--test_rows", "3")])
    assert [found["arm"] for found in report["results"]] == [real_model.UNTRAINED] * 2
    assert len(report["missing"]) == 20 and "random rows, seed 0, one" in report["missing"]
    assert "Missing: random rows, seed 0, one;" in (data / "out" / "results.md").read_text(encoding="utf-8")


def test_answers_are_those_of_the_models_own_loss_one_choice_at_a_time(modules):
    choices, _, _ = modules
    words, rows = tokenizer(), questions(20, 5)
    model = base_model(seed=3).eval()
    test = choices.Choices.of(rows, words, "test.jsonl")
    from hf_gist.training.loading import padding_collator

    found = choices.answer(model, test, padding_collator(words), tokens_per_batch=60)
    losses, by_sum, by_mean = [], [], []
    for row in rows:
        means, sums = [], []
        for choice in row["choices"]:
            prompt = words.apply_chat_template(row["messages"][:1], add_generation_prompt=True)["input_ids"]
            answered = [row["messages"][0], {"role": "assistant", "content": choice}]
            ids = words.apply_chat_template(answered)["input_ids"]
            labels = [-100] * len(prompt) + ids[len(prompt) :]
            with torch.no_grad():
                loss = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
            means.append(loss)
            sums.append(loss * (len(ids) - len(prompt)))
        losses.append(means[row["answer"]])
        by_mean.append(means.index(min(means)) == row["answer"])
        by_sum.append(sums.index(min(sums)) == row["answer"])
    torch.testing.assert_close(found.losses, torch.tensor(losses), rtol=1e-5, atol=1e-5)
    assert found.by_sum.tolist() == by_sum and found.by_mean.tolist() == by_mean
    assert 0 < sum(by_mean) < len(rows) and by_sum != by_mean


def test_rows_whose_answer_is_not_what_is_labelled_are_named(modules):
    choices, _, _ = modules
    rows = [row["messages"] for row in varied(2, 1)]
    names = ["Row 0 of f", "Row 1 of f"]
    encoded = choices.encode(rows, tokenizer(), names)
    assert tokenizer().decode([i for i in encoded[0]["labels"] if i != -100]) == rows[0][1]["content"] + " </s>"
    rows[1][1]["content"] = "w1 unknown"
    with pytest.raises(ValueError, match="Row 1 of f: the labelled tokens are 'w1', but the answer is 'w1 unknown'"):
        choices.encode(rows, tokenizer(), names)
    with pytest.raises(ValueError, match="Row 1 of f does not end with a question"):
        choices.encode([rows[0], rows[1][:1]], tokenizer(), names)
    forgetful = tokenizer("{% for m in messages %}{{ m['content'] if loop.last }} {% endfor %}")
    with pytest.raises(ValueError, match="Row 0 of f: the tokens of the question change"):
        choices.encode(rows[:1], forgetful, names[:1])


def test_differences_are_paired_by_row_and_seed(modules):
    _, _, table = modules

    def run(seed, right):
        return {"seed": seed, "right_by_sum": right}

    baseline = [run(0, "0011"), run(1, "0101")]
    assert table.paired_difference([run(0, "1011")], baseline, "by_sum") == (0.25, 0.25)
    assert table.paired_difference([run(0, "0011"), run(1, "0101")], baseline, "by_sum") == (0.0, 0.0)
    assert table.paired_difference([run(2, "0011")], baseline, "by_sum") is None
    assert table.paired_difference([run(None, "0011")], baseline, "by_sum") == (
        0.0,
        pytest.approx(0.5 * (2 / 3) ** 0.5 / 2),
    )
