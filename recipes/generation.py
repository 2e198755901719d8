"""Answers of a trained model to the rows of a test file, and their score by a metric."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object
from datasets import Dataset
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import GenerationConfig, PreTrainedTokenizerBase, Trainer
from trl.models import unwrap_model_for_generation

from hf_gist.utils.disk import write


METRICS = Path(__file__).parent / "metrics"


def load_metric(name: str) -> evaluate.EvaluationModule:
    """A metric of this folder by its name, or one of your own by the path of its folder; nothing is downloaded.

    Raises:
        ValueError: if there is no such metric; the message lists the available ones.
    """
    for folder in (METRICS / name, Path(name)):
        if (folder / f"{folder.name}.py").is_file():
            return evaluate.load(str(folder), keep_in_memory=True)
    known = ", ".join(sorted(path.name for path in METRICS.iterdir() if path.is_dir()))
    raise ValueError(
        f"`metric: {name}` is neither a metric of the recipes ({known}) nor a folder with a metric in it."
    )


def question_and_answer(row: dict[str, Any], number: int) -> tuple[Any, str]:
    """The prompt of a row (text or messages), and its answer.

    Raises:
        ValueError: naming the row, if it has neither `messages` that end with an assistant turn nor `prompt` and `completion`.
    """
    messages, prompt, completion = row.get("messages"), row.get("prompt"), row.get("completion")
    if messages and len(messages) > 1 and messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1]["content"]
    if prompt and completion:
        return prompt, completion if isinstance(completion, str) else completion[-1]["content"]
    raise ValueError(
        f"Row {number} of `test_file` has no question with an answer: rows need `messages` that end with an assistant "
        "turn, or `prompt` and `completion`."
    )


def encode_prompt(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt, up to the start of the answer."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]


def _greedy(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """The model's generation settings without sampling; generation also stops at the tokenizer's end of text."""
    config = copy.deepcopy(model.generation_config)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    config.update(
        do_sample=False, temperature=None, top_p=None, top_k=None, max_length=None, max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id, use_cache=True,
        eos_token_id=sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None}) or None,
    )  # fmt: skip
    return config


@torch.no_grad()
def generate_answers(
    trainer: Trainer, prompts: Sequence[list[int]], batch_size: int, max_new_tokens: int
) -> list[str]:
    """Greedy answers to all prompts, in their order, on every process; the prompts are split over the processes.

    Args:
        trainer (`Trainer`): with the trained model and its tokenizer.
        prompts (`Sequence[list[int]]`): token ids of each prompt.
        batch_size (`int`): prompts in one batch, of similar length, padded on the left.
        max_new_tokens (`int`): longest answer in tokens.
    """
    tokenizer, accelerator = trainer.processing_class, trainer.accelerator
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    found: list[tuple[int, str]] = []
    with (
        # sharded models gather their weights in every forward, so all processes need the same number of batches
        PartialState().split_between_processes(order, apply_padding=True) as mine,
        unwrap_model_for_generation(trainer.model_wrapped, accelerator) as model,
        accelerator.autocast(),
    ):
        model.eval()
        if accelerator.is_fsdp2:
            # `generate` bypasses the outermost module's forward, so its weights would stay sharded
            register_fsdp_forward_method(model, "generate")
        greedy = _greedy(model, tokenizer, max_new_tokens)
        for start in range(0, len(mine), batch_size):
            rows = mine[start : start + batch_size]
            batch = tokenizer.pad({"input_ids": [prompts[i] for i in rows]}, padding_side="left", return_tensors="pt")
            batch = batch.to(accelerator.device)
            tokens = model.generate(**batch, generation_config=greedy, synced_gpus=sharded)
            answers = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            found += zip(rows, (answer.strip() for answer in answers), strict=True)
    answers = dict(gather_object(found))
    return [answers[row] for row in range(len(prompts))]


class AnswerTest:
    """Answers a test set and scores the answers.

    Args:
        rows (`Dataset`): `messages`, or `prompt` and `completion`.
        metric (`str`): see [`load_metric`].
        choices (`list[str]`, *optional*): labels for `choice_accuracy`.
        max_new_tokens (`int`): longest answer in tokens.

    Raises:
        ValueError: for rows without an answer, or an unknown metric.
    """

    def __init__(self, rows: Dataset, metric: str, choices: list[str] | None, max_new_tokens: int) -> None:
        pairs = [question_and_answer(row, number) for number, row in enumerate(rows)]
        self.questions, self.references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        self.metric, self.max_new_tokens = load_metric(metric), max_new_tokens
        self.answers: list[str] = []
        self.options = {"choices": choices} if choices else {}
        # so that a reference that the metric cannot read raises now, not after the training
        self.metric.compute(predictions=self.references, references=self.references, **self.options)

    def prompts(self, tokenizer: PreTrainedTokenizerBase, positions: int) -> list[list[int]]:
        """Token ids of the prompts.

        Raises:
            ValueError: if one of them and the answer do not fit into the model's positions.
        """
        prompts = [encode_prompt(question, tokenizer) for question in self.questions]
        longest = max(len(prompt) for prompt in prompts)
        if longest + self.max_new_tokens > positions:
            raise ValueError(
                f"The longest prompt of `test_file` has {longest} tokens; with `max_new_tokens: {self.max_new_tokens}` "
                f"that is more than the model's {positions} positions. Lower `max_new_tokens` or leave the row out."
            )
        return prompts

    def run(self, trainer: Trainer, prompts: Sequence[list[int]]) -> dict[str, float]:
        """The metric of the trained model, as `test_*`."""
        answers = generate_answers(trainer, prompts, trainer.args.per_device_eval_batch_size, self.max_new_tokens)
        result = self.metric.compute(predictions=answers, references=self.references, **self.options)
        self.answers = answers
        return {f"test_{name}": value for name, value in result.items()} | {"test_samples": len(answers)}

    def save(self, folder: str | Path) -> None:
        """Write answers and references to `test_predictions.jsonl`."""
        pairs = zip(self.answers, self.references, strict=True)
        lines = [json.dumps({"prediction": a, "reference": b}, ensure_ascii=False) + "\n" for a, b in pairs]
        write(
            Path(folder) / "test_predictions.jsonl",
            lambda name: Path(name).write_text("".join(lines), encoding="utf-8"),
        )
