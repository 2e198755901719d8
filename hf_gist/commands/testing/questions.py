"""Test rows as questions whose answers are generated, and the metric of the answers."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hf_gist.commands.testing.measured import Measured
from hf_gist.data.preparation.labels import shortened
from hf_gist.data.preparation.templates import as_parts, find_template


Compute = Callable[[Sequence[str], Sequence[str]], Mapping[str, Any]]
"""From answers and references to the values of a metric."""

SAME = 1e-6
"""Largest difference of a metric from the mean of its values for single rows, by which it counts as their mean."""


def question_and_answer(row: dict[str, Any], where: str) -> tuple[Any, str]:
    """The prompt of a row (text or messages), and its answer.

    Args:
        row (`dict`): the row.
        where (`str`): its place, for messages.

    Raises:
        ValueError: naming the row, if it has neither `messages` that end with an assistant turn nor `prompt` and
            `completion`, or has settings of the chat template.
    """
    unused = [name for name in ("tools", "chat_template_kwargs") if row.get(name)]
    if unused:
        raise ValueError(
            f"{where} has `{unused[0]}`, which prompts for generated answers cannot have; leave the row out."
        )
    messages, prompt, completion = row.get("messages"), row.get("prompt"), row.get("completion")
    if prompt and completion:
        answer = completion if isinstance(completion, str) else completion[-1]["content"]
    elif isinstance(messages, list) and len(messages) > 1 and messages[-1].get("role") == "assistant":
        prompt = messages[:-1]
        answer = messages[-1]["content"]
    else:
        answer = None
    if not isinstance(answer, str):
        raise ValueError(
            f"{where} has no question with an answer: rows need `messages` that end with an assistant turn, or `prompt` "
            "and `completion`."
        )
    return prompt, answer


def _best(compute: Compute, references: Sequence[str], where: Callable[[int], str]) -> Mapping[str, Any]:
    """The values of a metric for right answers.

    Raises:
        ValueError: naming the first row whose reference the metric cannot read, with the metric's reason.
    """
    try:
        return compute(references, references)
    except Exception:
        for number, reference in enumerate(references):
            try:
                compute([reference], [reference])
            except Exception as error:
                raise ValueError(
                    f"{where(number)}: the metric cannot read its answer {shortened(reference)!r}: {error} Correct the "
                    "answer, leave the row out, or choose another metric."
                ) from error
        raise


def encode_prompt(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt, up to the start of the answer."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    encoded: Any = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
    return encoded["input_ids"]


class Questions:
    """The questions and answers of a test set.

    Args:
        rows (`Dataset`): `messages`, or `prompt` and `completion`.
        compute (`Callable`): the metric.
        max_new_tokens (`int`): longest answer in tokens.
        where (`Callable`): from a row number to its place, for messages.

    Raises:
        ValueError: for rows without an answer, or with one that the metric cannot read.
    """

    def __init__(self, rows: Dataset, compute: Compute, max_new_tokens: int, where: Callable[[int], str]) -> None:
        pairs = [question_and_answer(row, where(number)) for number, row in enumerate(rows.with_format(None))]
        self.questions = [pair[0] for pair in pairs]
        self.references = [pair[1] for pair in pairs]
        self.compute = compute
        self.max_new_tokens = max_new_tokens
        # so that a reference that the metric cannot read raises now, not after the training
        self.best = _best(compute, self.references, where)

    def prompts(self, tokenizer: PreTrainedTokenizerBase, positions: int) -> list[list[int]]:
        """Token ids of the prompts.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): of the model.
            positions (`int`): of the model.

        Raises:
            ValueError: if one of them and the answer do not fit into the model's positions, or the tokenizer has no chat
                template for conversations.
        """
        questions = self.questions
        if any(isinstance(question, list) for question in questions):
            if not find_template(tokenizer, "test_file").takes_text:
                questions = [as_parts(one) if isinstance(one, list) else one for one in questions]
        prompts = [encode_prompt(question, tokenizer) for question in questions]
        longest = max(len(prompt) for prompt in prompts)
        if longest + self.max_new_tokens > positions:
            raise ValueError(
                f"The longest prompt of `test_file` has {longest} tokens; with `max_new_tokens: {self.max_new_tokens}` "
                f"that is more than the model's {positions} positions. Lower `max_new_tokens` or leave the row out."
            )
        return prompts

    @property
    def name(self) -> str:
        """The metric's first value that is a number.

        Raises:
            ValueError: if it has none.
        """
        numbers = [name for name, value in self.best.items() if isinstance(value, int | float)]
        if not numbers:
            raise ValueError(f"The metric returns no number, but {self.best!r}.")
        return numbers[0]

    def measured(self, answers: Sequence[str]) -> Measured:
        """The first value of the metric, and that of every row if it is their mean.

        Args:
            answers (`Sequence[str]`): generated answers, in the order of the rows.
        """
        value = float(self.compute(answers, self.references)[self.name])
        try:
            rows = [float(self.compute([a], [b])[self.name]) for a, b in zip(answers, self.references, strict=True)]
        except Exception:
            # a metric of a whole set may have no value for one answer, as BLEU has none for an empty one
            return Measured(value, None, None)
        own = Measured.mean_of(rows)
        return own if abs(own.value - value) <= SAME else Measured(value, None, None)


# ---- Generation ----


def _greedy(model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
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
def greedy_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    batch_size: int,
    max_new_tokens: int,
    device: torch.device,
    synced: bool = False,
) -> list[str]:
    """Greedy answers of a model in eval mode, in the order of the prompts.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model.
        tokenizer (`PreTrainedTokenizerBase`): with a padding token.
        prompts (`Sequence[list[int]]`): token ids of each prompt.
        batch_size (`int`): prompts in one batch, of similar length, padded on the left.
        max_new_tokens (`int`): longest answer in tokens.
        device (`torch.device`): of the inputs.
        synced (`bool`): generate as long as other processes do, for sharded models.
    """
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    greedy = _greedy(model, tokenizer, max_new_tokens)
    found: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [prompts[i] for i in rows]}, padding_side="left", return_tensors="pt")
        tokens = model.generate(**batch.to(device), generation_config=greedy, synced_gpus=synced)
        answers = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        found |= dict(zip(rows, (answer.strip() for answer in answers), strict=True))
    return [found[row] for row in range(len(prompts))]
