"""The chat template that conversations are rendered with: the tokenizer's, a file's, or TRL's version for training."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging


MARKS = re.compile(r"{%-?\s*generation\s*-?%}")
"""Where a template marks the assistant's text."""

INSTALL = 'pip install "hf_gist[trl]"'
PROBE = ("qzjx", "wvky")
"""What a template must show of a question and an answer."""

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Template:
    """How to render conversations.

    Args:
        text (`str`, *optional*): template for conversations; `None` for the tokenizer's own.
        own (`str`): the tokenizer's own template, which prompts with a completion are rendered with.
        marked (`bool`): whether it marks the assistant's text, so that the tokenizer returns a mask.
        takes_text (`bool`): whether it renders content that is text; some render content parts only.
    """

    text: str | None
    own: str
    marked: bool
    takes_text: bool

    @property
    def roles(self) -> str:
        """The text in which the names of roles are looked for."""
        return self.own if self.text is None else self.text


def read_template(file: str | None) -> str | None:
    """The text of `--chat_template FILE`.

    Raises:
        ValueError: if there is no such file.
    """
    if file is None:
        return None
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"`--chat_template {file}`: no such file; give a file with a Jinja template.")
    return path.read_text(encoding="utf-8")


def with_template(tokenizer: PreTrainedTokenizerBase, text: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer with another chat template; the same tokenizer without one."""
    if text is None:
        return tokenizer
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = text
    return tokenizer


def check_trl(argument: str) -> None:
    """Check that TRL is installed.

    Args:
        argument (`str`): name of the dataset, for the message.

    Raises:
        ValueError: with the command that installs it.
    """
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"`{argument}` holds conversations, which TRL prepares, and TRL is not installed: `{INSTALL}`. Texts, and "
            "rows with `input_ids` and `labels`, need no TRL."
        ) from error


def default_of(template: Any) -> str:
    """The text of a chat template; of several named ones, the one for plain conversations."""
    if isinstance(template, dict):
        return template.get("default") or next(iter(template.values()))
    return template


def find_template(tokenizer: PreTrainedTokenizerBase, argument: str) -> Template:
    """The template that `SFTTrainer(assistant_only_loss=True)` would use for this tokenizer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): with its own template, or that of a file.
        argument (`str`): name of the dataset, for messages.

    Raises:
        ValueError: if the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"`{argument}` holds conversations, but the tokenizer has no chat template; give one with "
            "`--chat_template FILE`."
        )
    own = default_of(tokenizer.chat_template)
    text = None if MARKS.search(own) else training_version(tokenizer, argument)
    rendered = own if text is None else text
    return Template(text, own, MARKS.search(rendered) is not None, _takes_text(tokenizer, text))


def training_version(tokenizer: PreTrainedTokenizerBase, argument: str) -> str | None:
    """TRL's version of a template with marks; `None` if TRL does not know the template."""
    check_trl(argument)
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except (ValueError, KeyError, TypeError):
        # TRL does not know the template, or none of several is the default, or it takes only one (before TRL 1.15)
        return None


def _takes_text(tokenizer: PreTrainedTokenizerBase, template: str | None) -> bool:
    """Whether a template renders texts, or at least no content parts either."""
    return _shows(tokenizer, template, list(PROBE)) or not _shows(
        tokenizer, template, [[{"type": "text", "text": word}] for word in PROBE]
    )


def _shows(tokenizer: PreTrainedTokenizerBase, template: str | None, contents: list[Any]) -> bool:
    """Whether a question and its answer appear in the rendered conversation."""
    roles = ("user", "assistant")
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    try:
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except Exception:  # templates raise anything
        return False
    return isinstance(text, str) and all(word in text for word in PROBE)


def as_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with content parts instead of texts, for templates that render nothing else."""
    return [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]
