"""Kinds of trainers: those whose rows have no gradient of their own, and those that train on preference pairs."""

from typing import Any

from transformers import Trainer


GENERATES = (
    "generates the texts that it trains on during the run, so the rows of its dataset have no loss and no gradient of "
    "their own. Select rows with reference answers first (`hf-gist select`, or GISTDataSelectorCallback in SFTTrainer), "
    "and train {name} on the prompts of the selected rows."
)
COMPARES = (
    "compares the rows of a batch with each other, so the gradient of a row depends on the rest of its batch and rows "
    "cannot be scored one by one. GIST selects for Trainer, SFTTrainer, DPOTrainer and RewardTrainer."
)
KTO = (
    "estimates a KL term over each batch, so the gradient of a row depends on the rest of its batch. Use DPOTrainer on "
    "preference pairs, or select the desirable completions with `hf-gist select` and train {name} on the selected rows."
)

PAIRED = (
    "collates preference pairs in a way that is not supported. GIST selects pairs for DPOTrainer and RewardTrainer: select "
    "with DPOTrainer, and train {name} on the selected pairs."
)

REFUSED = {
    **dict.fromkeys(("GRPOTrainer", "RLOOTrainer", "OnlineDPOTrainer", "PPOTrainer"), GENERATES),
    **dict.fromkeys(("AsyncGRPOTrainer", "GOLDTrainer", "SDPOTrainer", "SDFTTrainer", "A2POTrainer"), GENERATES),
    **dict.fromkeys(("GKDTrainer", "MiniLLMTrainer", "DistillationTrainer", "ServerDistillationTrainer"), GENERATES),
    **dict.fromkeys(("AsyncDistillationTrainer", "IWOPDTrainer"), GENERATES),
    **dict.fromkeys(("ORPOTrainer", "CPOTrainer", "TPOTrainer"), PAIRED),
    **dict.fromkeys(("SentenceTransformerTrainer", "CrossEncoderTrainer", "SparseEncoderTrainer"), COMPARES),
    "KTOTrainer": KTO,
    "BCOTrainer": KTO,
}
"""Class name, also of a base class, to the reason why its rows cannot be scored and what to do instead."""

PREFERENCE = ("DPOTrainer", "RewardTrainer")
"""TRL's trainers whose row is a pair: a batch holds the chosen answers of all rows, then the rejected ones."""

SORTING = ("aot", "aot_unpaired")
"""Losses of DPOTrainer that compare the pairs of a batch with each other, not visibly so before the first step."""

PAIR_COLUMNS = ("chosen", "rejected")
"""Columns of raw preference rows, with an optional `prompt`."""


def base_names(trainer: Any) -> list[str]:
    """Names of the classes that a trainer is an instance of, its own first."""
    return [cls.__name__ for cls in type(trainer).__mro__]


def check_trainer_kind(trainer: Trainer | None) -> None:
    """Check that the rows of a trainer have gradients of their own.

    Raises:
        ValueError: naming the trainer, the reason and what to do instead.
    """
    kind = next((name for name in base_names(trainer) if name in REFUSED), None)
    if kind is not None:
        raise ValueError(f"{type(trainer).__name__} {REFUSED[kind].format(name=type(trainer).__name__)}")
    _check_pairs(trainer)


def trains_on_pairs(trainer: Any) -> bool:
    """Whether a row of a trainer is a preference pair."""
    return any(name in PREFERENCE for name in base_names(trainer))


def _check_pairs(trainer: Any) -> None:
    """Check that the pairs of a preference trainer are plain rows of a dataset.

    Raises:
        ValueError: naming the setting to change.
    """
    if not trains_on_pairs(trainer):
        return
    if getattr(trainer, "_is_vision_dataset", False):
        raise ValueError(f"{type(trainer).__name__} with images: pairs with images cannot be scored.")
    if getattr(trainer.args, "precompute_ref_log_probs", False):
        raise ValueError(
            "`precompute_ref_log_probs=True`: the log-probabilities of the reference model are columns of the train "
            "dataset, which the rows of `target_dataset` do not have. Set it to False."
        )
    sorting = [name for name in getattr(trainer, "loss_types", ()) if name in SORTING]
    if sorting:
        raise ValueError(
            f"`loss_type={sorting[0]!r}` sorts the rows of a batch, so the gradient of a row depends on the other rows. Use "
            "another loss of DPOTrainer, such as 'sigmoid'."
        )
    if getattr(trainer.args, "use_liger_kernel", False):
        raise ValueError(
            f"`use_liger_kernel=True`: the fused loss of {type(trainer).__name__} bypasses the modules whose gradients are "
            "scored. Set it to False."
        )
