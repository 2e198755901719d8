"""A word-level tokenizer with a chat template and a tiny model folder, made in code."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import base_model


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
    """Conversations of several families with their own words."""
    rows = []
    for i in range(size):
        family = i % families
        words = [f"w{family * 20 + (i * 7 + j * 3) % 20}" for j in range(8)]
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
