"""A loss of whole batches as a weighted sum of the rows' own losses: exact against batches of one row."""

import pytest
import torch
from torch.nn.functional import cross_entropy, pad

from hf_gist.gradients.lora import find_tracked
from hf_gist.gradients.models import adapter_parameters
from hf_gist.gradients.row_losses.weighted import WeightedLoss, verified
from hf_gist.gradients.vectors import per_sample_backward
from tests.helpers.tiny import PaddingCollator, lora_model, token_rows


ROWS = [{**row, "labels": [-100, -100, *row["input_ids"][2:]]} for row in token_rows(5, low=5, high=15)]


def labels_of(row):
    return sum(label != -100 for label in row["labels"])


TWO = [min(ROWS, key=labels_of), max(ROWS, key=labels_of)]


def token_losses(model, inputs):
    """`[B, T]`, zero where there is no label."""
    names = ("input_ids", "attention_mask")
    logits = model(**{name: inputs[name] for name in names if name in inputs}).logits.transpose(1, 2)
    labels = pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    return cross_entropy(logits, labels, reduction="none"), labels != -100


def token_mean(model, inputs, labelled):
    losses, _ = token_losses(model, inputs)
    return losses.sum() / labelled


def row_mean(model, inputs, labelled):
    losses, mask = token_losses(model, inputs)
    return (losses.sum(1) / mask.sum(1)).mean()


def row_sum(model, inputs, labelled):
    return len(inputs["labels"]) * row_mean(model, inputs, labelled)


def label_mean(model, inputs, labelled):
    """Divides by all labels, that of the first token included, as a mean over a mask of labels does."""
    losses, _ = token_losses(model, inputs)
    return losses.sum() / (inputs["labels"] != -100).sum()


def padded_mean(model, inputs, labelled):
    losses, _ = token_losses(model, inputs)
    return losses.sum() / inputs["attention_mask"].sum()


def focal(model, inputs, labelled):
    losses, _ = token_losses(model, inputs)
    return ((1 - (-losses).exp()).detach() * losses).sum() / labelled


KNOWN = {
    "mean over labelled tokens": (token_mean, focal),
    "mean over rows": (row_mean,),
    "sum over rows": (row_sum,),
    "mean over labels": (label_mean,),
    "mean over tokens": (padded_mean,),
}


def first_label_too(rows):
    return [{**row, "labels": row["input_ids"][:1] + row["labels"][1:]} for row in rows]


def found_gradients(loss, batch):
    parts = {}
    tracked = find_tracked(loss.model)
    per_sample_backward(loss, loss.prepared(batch), tracked, lambda name, values: parts.update({name: values.clone()}))
    return parts


def alone(model, compute, row, labelled):
    parameters = adapter_parameters(model)
    loss = compute(model, PaddingCollator()([row]), labelled)
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize(("weighting", "compute"), [(name, f) for name, fs in KNOWN.items() for f in fs])
def test_gradients_are_those_of_a_batch_of_one(weighting, compute):
    model = lora_model().eval()
    rows = first_label_too(ROWS) if compute is label_mean else ROWS
    two = first_label_too(TWO) if compute is label_mean else TWO
    loss = WeightedLoss("own", model, lambda inputs, labelled: compute(model, inputs, labelled))
    loss = verified(loss, PaddingCollator(), two, find_tracked(model))
    assert loss.weighting == weighting
    batch = PaddingCollator()(rows)
    found = found_gradients(loss, batch)
    counts = loss.counts(batch)
    for number, row in enumerate(rows):
        for name, expected in alone(model, compute, row, int(counts[number])).items():
            torch.testing.assert_close(found[name][number], expected.flatten(), rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def contrastive(model, inputs, labelled):
    losses, _ = token_losses(model, inputs)
    return -torch.log_softmax(-losses.mean(1), dim=0).mean()


def random_weights(model, inputs, labelled):
    losses, _ = token_losses(model, inputs)
    return (losses * torch.rand_like(losses)).sum()


def batch_variance(model, inputs, labelled):
    losses, _ = token_losses(model, inputs)
    return losses.sum() / labelled + 1000 * losses.mean(1).var(correction=0)


def harder_first(model, inputs, labelled):
    losses, mask = token_losses(model, inputs)
    rows = losses.sum(1) / mask.sum(1)
    return (rows * torch.softmax(rows.detach(), 0)).sum()


def shortest_counts_twice(model, inputs, labelled):
    losses, mask = token_losses(model, inputs)
    counts = mask.sum(1)
    return ((losses.sum(1) / counts) * (1 + (counts == counts.min())) / (1 + len(counts))).sum()


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (contrastive, "has no gradient for a single row"),
        (random_weights, "mixes the rows of a batch"),
        (batch_variance, "mixes the rows of a batch"),
        (harder_first, "weights the rows of a batch by a rule that is not known"),
        (shortest_counts_twice, "weights the rows of a batch by a rule that is not known"),
    ],
)
def test_what_cannot_be_split_by_row_is_refused_by_name(compute, reason):
    model = lora_model().eval()
    loss = WeightedLoss("MyTrainer.compute_loss", model, lambda inputs, labelled: compute(model, inputs, labelled))
    with pytest.raises(ValueError, match=f"MyTrainer.compute_loss {reason}"):
        verified(loss, PaddingCollator(), TWO, find_tracked(model))


def test_left_padded_rows_do_not_depend_on_their_batch():
    model = lora_model().eval()

    def compute(inputs, labelled):
        return model(**inputs).loss

    loss = verified(WeightedLoss("own", model, compute), PaddingCollator("left"), TWO, find_tracked(model))
    assert loss.weighting == "mean over labelled tokens"


def pair_batch(pairs):
    return PaddingCollator()([chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs])


def pair_loss(model, batch):
    losses, _ = token_losses(model, batch)
    chosen, rejected = losses.sum(1).chunk(2)
    return -torch.nn.functional.logsigmoid(0.1 * (rejected - chosen)).mean()


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"lora_bias": True}])
def test_the_gradient_of_a_pair_is_the_sum_over_its_two_sequences(lora):
    model = lora_model(**lora).eval()
    rows = token_rows(8, seed=4)
    pairs = list(zip(rows[:4], rows[4:], strict=True))
    loss = WeightedLoss("pairs", model, lambda inputs, labelled: pair_loss(model, inputs), 2, "mean over rows")
    batch = {**pair_batch(pairs), "completion_mask": pair_batch(pairs)["attention_mask"]}
    found = found_gradients(loss, batch)
    parameters = adapter_parameters(model)
    for number, pair in enumerate(pairs):
        gradients = torch.autograd.grad(pair_loss(model, pair_batch([pair])), list(parameters.values()))
        for name, expected in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(found[name][number], expected.flatten(), rtol=1e-4, atol=1e-6)
    assert loss.counts(batch).tolist() == [len(a["input_ids"]) + len(b["input_ids"]) - 2 for a, b in pairs]


def test_a_collator_that_does_not_make_pairs_is_refused():
    model = lora_model()
    loss = WeightedLoss("DPOTrainer on preference pairs", model, lambda inputs, labelled: None, 2)
    with pytest.raises(ValueError, match="made 5 sequences of 5 rows of the pool; DPOTrainer"):
        loss.check(PaddingCollator()(ROWS), 5, "pool")
