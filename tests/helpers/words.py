"""A word-level tokenizer with a chat template and a tiny model folder, made in code."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers.tiny import base_model


TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}user {{ m['content'] }} {% else %}assistant "
    "{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant"] + [f"w{i}" for i in range(93)]


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """`w0` to `w92`, separated by spaces."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    result = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    result.chat_template = template
    return result


def save_model(folder: Path) -> Path:
    """A tiny Llama and its tokenizer as a model folder."""
    base_model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def chats(size: int, families: int = 4) -> list[dict]:
    """Conversations of several families with their own words, up to 400 of them without a repetition."""
    rows = []
    for i in range(size):
        family = i % families
        words = [f"w{family * 20 + (i * 7 + j * (3 + i // 20)) % 20}" for j in range(8)]
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": " ".join(words[:4])},
                    {"role": "assistant", "content": " ".join(words[4:])},
                ],
                "source": f"family{family}",
            }
        )
    return rows


def varied(size: int, seed: int) -> list[dict]:
    """Conversations of four families, no two alike, so that no scores tie and no row is in two sets."""
    rng, rows = random.Random(seed), chats(size)
    for i, row in enumerate(rows):
        words = [f"w{(i % 4) * 20 + rng.randrange(20)}" for _ in range(rng.randint(6, 10))]
        row["messages"][0]["content"], row["messages"][1]["content"] = " ".join(words[:4]), " ".join(words[4:])
    return rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Every character is a token, of any text, so that chat templates and their markup can be tried."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    result = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    result.chat_template = template
    return result


def user(text: str) -> dict[str, str]:
    """A turn of the user."""
    return {"role": "user", "content": text}
