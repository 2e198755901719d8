"""Rows that hold several examples are refused in whatever form they come; other masks and positions are exact."""

import pytest
import torch

from hf_gist.data.batches import check_batch
from tests.gradients.test_vectors import worst_relative_error
from tests.helpers.gast import build_model, train
from tests.helpers.tiny import PaddingCollator, lora_model, token_rows


T = 9
INDEX = torch.arange(T)
CAUSAL = INDEX[:, None] >= INDEX
NUMBERED = torch.tensor([[1, 1, 1, 2, 2, 2, 3, 3, 0], [1, 1, 1, 1, 1, 0, 0, 0, 0]])
"""Examples of each row, as LLaMA-Factory and axolotl number them; 0 is padding."""
RESTARTING = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 0, 0, 0, 0]])
BLOCKS = (NUMBERED[:, :, None] == NUMBERED[:, None]) & (NUMBERED != 0)[:, None] & CAUSAL
REAL = (NUMBERED != 0).long()


LOWEST = torch.finfo(torch.float32).min


def added(mask, low=LOWEST):
    """A mask that is added to the scores."""
    return torch.where(mask, 0.0, low)


def batch(**entries):
    ids = torch.arange(2 * T).view(2, T)
    return {"input_ids": ids, "labels": torch.where(REAL == 1, ids, -100), **entries}


PACKED = {
    "blocks": ({"attention_mask": BLOCKS[:, None]}, "blocks that do not see each other"),
    "blocks, added": ({"attention_mask": added(BLOCKS)[:, None]}, "blocks that do not see each other"),
    "blocks, infinite": ({"attention_mask": added(BLOCKS, -torch.inf)[:, None]}, "blocks that do not"),
    "blocks, bfloat16": (
        {"attention_mask": added(BLOCKS, torch.finfo(torch.bfloat16).min).bfloat16()[:, None]},
        "blocks that do not",
    ),
    "blocks, integers": ({"attention_mask": BLOCKS.long()[:, None]}, "blocks that do not"),
    "blocks, three dimensions": ({"attention_mask": BLOCKS}, "blocks that do not"),
    "blocks, by layer": ({"attention_mask": {"full_attention": BLOCKS[:, None]}}, "blocks that do not"),
    "numbers": ({"attention_mask": NUMBERED}, "numbers the examples"),
    "positions": ({"position_ids": RESTARTING}, "position ids start again"),
    "positions, mask": ({"position_ids": RESTARTING, "attention_mask": REAL}, "position ids start again"),
    "positions, causal mask": (
        {"position_ids": RESTARTING, "attention_mask": CAUSAL.expand(2, 1, T, T)},
        "position ids start again",
    ),
    "lengths": ({"seq_lengths": [[3, 3, 2], [5]]}, "has `seq_lengths`"),
    "cumulative lengths": ({"cu_seq_lens_q": torch.tensor([0, 3, 6, 8])}, "has `cu_seq_lens_q`"),
    "sequence numbers": ({"seq_idx": NUMBERED}, "has `seq_idx`"),
    "column": ({"packed": torch.tensor([True, False])}, "column `packed` is true"),
    "column, list": ({"packed": [True, True]}, "column `packed` is true"),
}


@pytest.mark.parametrize("form", PACKED)
def test_packed_rows_are_refused_with_the_way_out(form):
    entries, reason = PACKED[form]
    with pytest.raises(ValueError, match=f"The pool is packed or padding-free.*{reason}") as raised:
        check_batch(batch(**entries), 2, "pool")
    assert "select first with `hf-gist select`" in str(raised.value) and "packed.yaml" in str(raised.value)


def test_flattened_rows_are_refused():
    with pytest.raises(ValueError, match="1 rows for 2 samples"):
        check_batch({"input_ids": torch.ones(1, T), "labels": torch.ones(1, T)}, 2, "pool")


PADDED = REAL.flip(1)
SELF = torch.eye(T, dtype=torch.bool)
LEFT = (PADDED[:, None] * PADDED[:, :, None]).bool() & CAUSAL | SELF
PREFIX = CAUSAL | (INDEX < 4)
WINDOW = CAUSAL & (INDEX[:, None] - INDEX < 3)
SEPARATE = {
    "plain": {"attention_mask": REAL},
    "booleans": {"attention_mask": REAL.bool()},
    "no mask": {},
    "prefix": {"attention_mask": PREFIX.expand(2, 1, T, T)},
    "prefix, added": {"attention_mask": added(PREFIX).expand(2, 1, T, T)},
    "window": {"attention_mask": WINDOW.expand(2, 1, T, T)},
    "all see all": {"attention_mask": torch.zeros(2, 1, T, T)},
    "all see all, ones": {"attention_mask": torch.ones(2, 1, T, T)},
    "padding sees itself": {"attention_mask": LEFT[:, None], "labels": torch.where(PADDED == 1, 5, -100)},
    "left padding": {"attention_mask": PADDED, "position_ids": (PADDED.cumsum(1) - 1).clamp(min=0)},
    "left padding, ones": {
        "attention_mask": PADDED,
        "position_ids": (PADDED.cumsum(1) - 1).masked_fill(PADDED == 0, 1),
    },
    "padded positions": {"attention_mask": REAL, "position_ids": torch.arange(T) * REAL},
    "column": {"packed": [False, False]},
}


@pytest.mark.parametrize("form", SEPARATE)
def test_rows_of_one_example_are_not_refused(form):
    check_batch(batch(**SEPARATE[form]), 2, "pool")


class Masked(PaddingCollator):
    """With a mask of the user's own, in which padding sees itself."""

    def __init__(self, kind, form):
        super().__init__()
        self.kind, self.form = kind, form

    def __call__(self, rows):
        made = super().__call__(rows)
        real, index = made["attention_mask"].bool(), torch.arange(made["input_ids"].shape[1])
        mask = (index[:, None] >= index).expand(len(real), -1, -1)
        if self.kind == "prefix":
            prompt = index < (made["labels"] != -100).int().argmax(1)[:, None]
            mask = mask | prompt[:, None] & prompt[:, :, None]
        if self.kind == "window":
            mask = mask & (index[:, None] - index < 3)
        mask = mask & real[:, None] & real[:, :, None] | torch.eye(len(index), dtype=torch.bool)
        made["attention_mask"] = mask[:, None] if self.form == "booleans" else added(mask)[:, None]
        return made


@pytest.mark.parametrize("form", ["booleans", "added"])
@pytest.mark.parametrize("kind", ["causal", "prefix", "window"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_gradients_with_a_mask_of_the_users_own_are_exact(architecture, kind, form):
    assert worst_relative_error(lora_model(architecture), token_rows(7), Masked(kind, form)) <= 1e-5


class Numbering(PaddingCollator):
    """Rows of two examples, numbered in the attention mask."""

    def __call__(self, rows):
        made = super().__call__(rows)
        made["attention_mask"][:, 3:] *= 2
        return made


def test_gast_refuses_them_too(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.helpers.gast.collate", Numbering())
    with pytest.raises(ValueError, match="training set is packed or padding-free .*numbers the examples"):
        train(build_model(), tmp_path, token_rows(16))
