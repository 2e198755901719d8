"""Conversations as tokens, and how well a model chooses among several answers to each question.

A choice is scored as the assistant's answer in the tokenizer's own chat template. The model answers with the choice of
the highest log-likelihood: of the whole answer (the sum over its tokens), or the mean per token.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_gist.data.batches import plan_batches
from hf_gist.data.rows import IGNORE_INDEX, row_lengths
from hf_gist.gradients.losses import sample_losses
from hf_gist.gradients.models import model_device, to_device
from hf_gist.gradients.modes import scoring_mode, scoring_precision


def read_jsonl(path):
    """The rows of a JSONL file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def encode(conversations, tokenizer, names):
    """`input_ids` and `labels` of conversations; the last message, which is the assistant's answer, is labelled.

    Args:
        conversations (`list[list[dict]]`): messages with `role` and `content`.
        tokenizer (`PreTrainedTokenizerBase`): has a chat template.
        names (`list[str]`): name of each conversation for messages.

    Raises:
        ValueError: naming the row, if its answer cannot be located in the tokens or is not what is labelled.
    """
    if not conversations:
        return []
    for messages, name in zip(conversations, names, strict=True):
        if [message["role"] for message in messages[-2:]] != ["user", "assistant"]:
            raise ValueError(f"{name} does not end with a question of the user and the answer of the assistant.")
    chat = tokenizer.apply_chat_template
    whole = chat(conversations, tokenize=True, return_dict=True)["input_ids"]
    questions = [messages[:-1] for messages in conversations]
    prompts = chat(questions, tokenize=True, return_dict=True, add_generation_prompt=True)["input_ids"]
    rows = []
    for ids, prompt, messages, name in zip(whole, prompts, conversations, names, strict=True):
        start = len(prompt)
        if ids[:start] != prompt:
            raise ValueError(f"{name}: the tokens of the question change when the answer is added.")
        answer = messages[-1]["content"].strip()
        labelled = tokenizer.decode(ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        if not answer or labelled != answer:
            raise ValueError(f"{name}: the labelled tokens are {labelled!r}, but the answer is {answer!r}.")
        rows.append({"input_ids": list(ids), "labels": [IGNORE_INDEX] * start + list(ids[start:])})
    return rows


@dataclass(frozen=True)
class Choices:
    """A test set with every choice of every row as a tokenised conversation.

    Args:
        encoded (`list[dict]`): all choices of the first row, then those of the second, and so on.
        sizes (`list[int]`): number of choices of each row.
        answers (`list[int]`): the right choice of each row.
    """

    encoded: list[dict]
    sizes: list[int]
    answers: list[int]

    @classmethod
    def of(cls, rows, tokenizer, name):
        """Tokenise test rows, which have `choices` (texts) and `answer` (index) beside `messages`."""
        conversations, names = [], []
        for number, row in enumerate(rows):
            if not 0 <= row["answer"] < len(row["choices"]):
                raise ValueError(f"Row {number} of {name}: answer {row['answer']} is none of its choices.")
            for choice in row["choices"]:
                conversations.append([*row["messages"][:-1], {"role": "assistant", "content": choice}])
                names.append(f"Row {number} of {name}, choice {choice!r}")
        encoded = encode(conversations, tokenizer, names)
        return cls(encoded, [len(row["choices"]) for row in rows], [row["answer"] for row in rows])

    def right(self):
        """The tokenised conversations with the right choices."""
        starts = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        return [self.encoded[start + answer] for start, answer in zip(starts, self.answers, strict=False)]


@dataclass(frozen=True)
class Answers:
    """How a model did on each of `R` test rows.

    Args:
        losses (`Tensor`): mean token loss of the right choice `[R]`.
        by_sum (`Tensor`): whether the right choice has the highest log-likelihood `[R]` bool.
        by_mean (`Tensor`): whether it has the highest log-likelihood per token `[R]` bool.
    """

    losses: torch.Tensor
    by_sum: torch.Tensor
    by_mean: torch.Tensor


@torch.no_grad()
def choice_losses(model, encoded, collator, tokens_per_batch, compute_dtype):
    """Mean token losses `[C]` and token counts `[C]` of tokenised answers, in batches of similar length."""
    losses, counts = torch.zeros(len(encoded)), torch.zeros(len(encoded), dtype=torch.long)
    device = model_device(model)
    for indices in plan_batches(row_lengths(encoded), len(encoded), tokens_per_batch):
        batch = to_device(collator([encoded[i] for i in indices]), device)
        with scoring_precision(model, compute_dtype):
            means, tokens = sample_losses(model, batch)
        losses[indices], counts[indices] = means.float().cpu(), tokens.cpu()
    return losses, counts


def answer(model, choices, collator, tokens_per_batch=8192, compute_dtype="auto"):
    """The answers of a model, in eval mode, to a test set.

    Args:
        model (`nn.Module`): a peft or transformers model.
        choices (`Choices`): the test set.
        collator (`Callable`): rows to a padded batch.
        tokens_per_batch (`int`): padded tokens in one batch.
        compute_dtype (`str`): `"bfloat16"` for autocast, `"auto"` for the model's own dtype.
    """
    with scoring_mode(model):
        means, counts = choice_losses(model, choices.encoded, collator, tokens_per_batch, compute_dtype)
    losses, by_sum, by_mean = [], [], []
    for own, tokens, right in zip(
        means.split(choices.sizes), counts.split(choices.sizes), choices.answers, strict=True
    ):
        losses.append(own[right])
        by_sum.append(int((own * tokens).argmin()) == right)
        by_mean.append(int(own.argmin()) == right)
    return Answers(torch.stack(losses), torch.tensor(by_sum), torch.tensor(by_mean))
