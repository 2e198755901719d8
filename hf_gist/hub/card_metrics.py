"""Evaluation metrics of a training run as entries of a model card's `model-index`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult
from transformers.utils import logging

from hf_gist.data.provenance import hub_origins


logger = logging.get_logger(__name__)

TASK_OF_CLASS_ENDING = {
    "CAUSAL_LM": "text-generation",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "SEQ_CLS": "text-classification",
    "ForSequenceClassification": "text-classification",
}
"""Ending of a model class's name, or peft's task type, to the Hub's name of the task."""

NOT_METRICS = ("runtime", "per_second", "time", "num_tokens", "epoch", "step", "compilation_time")
"""Endings of logged names that describe the evaluation run, not the model."""

UNKNOWN_DATASET = "unknown"
"""Dataset id for rows that are not on the Hub, as in the cards of other libraries."""


def task_of(name: str | None) -> str | None:
    """The Hub's name of the task of a model class or a peft task type; `None` if it is unknown."""
    return next((task for ending, task in TASK_OF_CLASS_ENDING.items() if (name or "").endswith(ending)), None)


def _measured(history: Sequence[Mapping[str, Any]], step: int) -> dict[str, float]:
    """Name (without `eval_`) and value of the metrics of the weights at `step`; the last value of a name is used."""
    ends = [position for position, entry in enumerate(history) if "train_runtime" in entry]
    # an evaluation after the training is of the final weights (the best ones if it loaded them), whatever step it logs
    end = ends[-1] if ends else len(history)
    found: dict[str, Any] = {}
    for position, entry in enumerate(history):
        if position > end or entry.get("step") == step:
            found |= {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value) and not name.endswith(NOT_METRICS)
    }


def evaluation_results(
    history: Sequence[Mapping[str, Any]], step: int, model_class: str | None, eval_dataset: Any = None
) -> list[EvalResult]:
    """The evaluation results of the weights at one step.

    Args:
        history (`Sequence[Mapping]`): `log_history` of the trainer's state.
        step (`int`): the step of the weights that the card describes; evaluations at other steps are left out.
        model_class (`str`, *optional*): name of the model's class, or peft's task type.
        eval_dataset (*optional*): the evaluation set, or a dict of several by name.

    Returns:
        `list[EvalResult]`: empty, with a logged warning, if there is no evaluation at `step` or the task is unknown.
    """
    values = _measured(history, step)
    task = task_of(model_class)
    if not values:
        if any("eval_" in name for entry in history for name in entry):
            logger.warning(
                f"All evaluations were at other steps than step {step}, so the model card has no metrics. Call "
                "`trainer.evaluate()` before the push."
            )
        return []
    if task is None:
        logger.warning(f"The task of {model_class} is unknown, so the model card has no metrics.")
        return []
    return [_result(task, name, value, eval_dataset) for name, value in values.items()]


def _split_name(name: str, eval_dataset: Any) -> tuple[str, str | None, Any]:
    """The metric, name and rows of the evaluation set that a logged name (`SET_METRIC` for several sets) refers to."""
    sets = eval_dataset if isinstance(eval_dataset, Mapping) else {}
    # the longest name first, because one name may be the beginning of another
    set_name = next((key for key in sorted(sets, key=len, reverse=True) if name.startswith(f"{key}_")), None)
    if set_name is None:
        return name, None, eval_dataset
    return name.removeprefix(f"{set_name}_"), set_name, sets[set_name]


def _result(task: str, name: str, value: float, eval_dataset: Any) -> EvalResult:
    metric, set_name, dataset = _split_name(name, eval_dataset)
    origins = [] if dataset is None else hub_origins(dataset)
    origin = origins[0] if len(origins) == 1 else None
    return EvalResult(
        task_type=task,
        dataset_type=origin["id"] if origin else UNKNOWN_DATASET,
        dataset_name=set_name or (origin["id"] if origin else "evaluation set"),
        # the Hub treats results as of one dataset unless type, config, split or revision differ
        dataset_config=set_name,
        dataset_split=str(dataset.split) if origins and getattr(dataset, "split", None) else None,
        dataset_revision=origin["revision"] if origin else None,
        metric_type=metric,
        metric_name=metric.replace("_", " ").capitalize(),
        metric_value=value,
    )
