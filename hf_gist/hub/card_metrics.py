"""Measured evaluation metrics of a training, in the form of a model card's `model-index`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult
from transformers.utils import logging

from hf_gist.data.provenance import hub_origins


logger = logging.get_logger(__name__)

TASKS = {
    "CAUSAL_LM": "text-generation",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "SEQ_CLS": "text-classification",
    "ForSequenceClassification": "text-classification",
}
"""Endings of model classes, and peft's task types, by the Hub's name of the task."""

NO_METRIC = ("runtime", "per_second", "time", "num_tokens", "epoch", "step", "compilation_time")
UNKNOWN = "unknown"
"""The dataset id of rows that are not on the Hub, as other libraries write it."""


def task_of(name: str | None) -> str | None:
    """The Hub's name of the task of a model class or a peft task type."""
    return next((task for ending, task in TASKS.items() if (name or "").endswith(ending)), None)


def _measured(history: Sequence[Mapping[str, Any]], step: int) -> dict[str, float]:
    """The metrics of the weights of `step`, without the prefix `eval_`; the last value of each counts."""
    ends = [position for position, entry in enumerate(history) if "train_runtime" in entry]
    # What is measured after a training is measured on the weights that it left, the best ones if it loaded them.
    after = ends[-1] if ends else len(history)
    found: dict[str, Any] = {}
    for position, entry in enumerate(history):
        if position > after or entry.get("step") == step:
            found |= {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value) and not name.endswith(NO_METRIC)
    }


def evaluation_results(
    history: Sequence[Mapping[str, Any]], step: int, model_class: str | None, eval_dataset: Any = None
) -> list[EvalResult]:
    """What was measured on the weights of one step.

    Args:
        history (`Sequence[Mapping]`): `log_history` of the trainer's state.
        step (`int`): the step whose weights are described; what was measured at another step is not theirs.
        model_class (`str`, *optional*): name of the model's class, or peft's task type.
        eval_dataset (*optional*): the evaluation set, or several by name.

    Returns:
        `list[EvalResult]`: empty if nothing was measured.
    """
    values, task = _measured(history, step), task_of(model_class)
    if not values:
        if any("eval_" in name for entry in history for name in entry):
            logger.warning(
                f"The evaluations were of other steps than step {step}, so the model card claims no metric. Call "
                "`trainer.evaluate()` before the push."
            )
        return []
    if task is None:
        logger.warning(f"The task of {model_class} is not known, so the model card claims no metric.")
        return []
    sets = eval_dataset if isinstance(eval_dataset, Mapping) else {}
    results = []
    for name, value in values.items():
        part = next((key for key in sorted(sets, key=len, reverse=True) if name.startswith(f"{key}_")), None)
        metric = name if part is None else name.removeprefix(f"{part}_")
        results.append(_result(task, metric, value, part, eval_dataset if part is None else sets[part]))
    return results


def _result(task: str, metric: str, value: float, part: str | None, dataset: Any) -> EvalResult:
    origins = [] if dataset is None else hub_origins(dataset)
    origin = origins[0] if len(origins) == 1 else {"id": UNKNOWN, "revision": None}
    name = part or (origin["id"] if origin["id"] != UNKNOWN else "evaluation set")
    return EvalResult(
        task_type=task,
        dataset_type=origin["id"],
        dataset_name=name,
        # sets that differ in nothing but their name would be taken for one
        dataset_config=part,
        dataset_split=str(dataset.split) if origins and getattr(dataset, "split", None) else None,
        dataset_revision=origin["revision"],
        metric_type=metric,
        metric_name=metric.replace("_", " ").capitalize(),
        metric_value=value,
    )
