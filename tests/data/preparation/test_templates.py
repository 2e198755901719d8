"""Every chat template that TRL ships: tokens and labels are those that `SFTTrainer` trains on."""

from pathlib import Path

import pytest
from datasets import Dataset, disable_progress_bars, enable_progress_bars

from hf_gist.data.preparation.run import prepare
from hf_gist.data.preparation.templates import MARKS
from hf_gist.data.rows import IGNORE_INDEX
from tests.helpers.tiny import lora_model
from tests.helpers.words import chat_tokenizer, user


trl = pytest.importorskip("trl", reason="TRL is not installed")

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, **arguments):
    return [{"type": "function", "function": {"name": name, "arguments": arguments}}]


CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "The city"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": CITY}}]
QUESTION = user("Name a colour.")
BLUE = answer("Blue it is.")
RAIN = [user("Rain in Oslo?"), answer("", tool_calls=call("weather", city="Oslo"))]
CASES = {
    "single turn": {"messages": [QUESTION, BLUE]},
    "multi-turn": {"messages": [QUESTION, BLUE, user("Another?"), answer("Green then.")]},
    "system": {"messages": [{"role": "system", "content": "Be brief please."}, QUESTION, BLUE]},
    "tools": {"messages": [*RAIN, {"role": "tool", "name": "weather", "content": "wet"}, BLUE], "tools": TOOLS},
    "assistant first": {"messages": [BLUE, user("Where is the inn?"), answer("Down the lane.")]},
    "reasoning": {"messages": [QUESTION, answer("Blue it is.", reasoning_content="the sky is")]},
    "reasoning in the text": {"messages": [QUESTION, answer("<think>\nthe sky is\n</think>\n\nBlue it is.")]},
    "prompt and completion": {"prompt": [QUESTION], "completion": [BLUE]},
}
PARTS_ONLY = {"idefics3", "smolvlm"}
"""Templates that render content parts and no text: with their processors, `SFTTrainer` makes parts of texts."""

COUNTS_PROMPT = not hasattr(trl.trainer.sft_trainer, "common_prefix_length")
"""Whether labels begin at the length of the prompt alone, as before TRL 1.15, and not where the two texts differ."""

PARTS = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in (QUESTION, BLUE)]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """An `SFTTrainer`, whose template and arguments are changed from case to case."""
    args = trl.SFTConfig(str(tmp_path_factory.mktemp("sft")), report_to=[], bf16=False, max_length=None)
    disable_progress_bars()
    yield trl.SFTTrainer(
        lora_model(), args, train_dataset=Dataset.from_list([{"text": "a"}] * 2), processing_class=chat_tokenizer()
    )
    enable_progress_bars()


def of_trl(trainer, row, template):
    """Tokens and labels of a row as `SFTTrainer` collates it; `None` if it refuses the row or the template."""
    chat = "messages" in row
    trainer.args.assistant_only_loss = chat
    trainer.completion_only_loss = not chat
    trainer.processing_class.chat_template = template
    trainer.chat_template = None
    try:
        # as the constructor of SFTTrainer does
        if chat and not MARKS.search(template):
            trainer.chat_template = trl.chat_template_utils.get_training_chat_template(trainer.processing_class)
        rows = Dataset.from_list([row])
        prepared = trainer._prepare_dataset(rows, trainer.processing_class, trainer.args, False, None, "rows")
    except Exception:  # templates raise anything
        return None
    batch = trainer.data_collator([prepared[0]])
    return batch["input_ids"][0].tolist(), batch["labels"][0].tolist()


def of_ours(row, template):
    """Tokens, labels, and whether the check of the labels found a fault; `None` if the row is refused."""
    tokenizer = chat_tokenizer(template)
    prepared = prepare(Dataset.from_list([row]), tokenizer, None, "pool", skip_bad_rows=True)
    if prepared.bad.reasons:
        return None
    return prepared.rows[0]["input_ids"], prepared.rows[0]["labels"], bool(prepared.mislabelled.found)


def in_parts(row):
    """The row as `SFTTrainer` gives it to the template of a processor."""
    return {
        name: trl.data_utils.prepare_multimodal_messages(value) if name != "tools" else value
        for name, value in row.items()
    }


def said(row):
    """All that the assistant says in a row, and the names of the tools it calls."""
    turns = [turn for turn in row.get("messages", row.get("completion")) if turn["role"] == "assistant"]
    calls = [call["function"]["name"] for turn in turns for call in turn.get("tool_calls", [])]
    return [text for text in [*(turn["content"] for turn in turns), *calls] if text]


def holds(tokens, labels, row):
    """Whether the labelled text has all that the assistant says, and nothing of what others say."""
    text = "".join(chat_tokenizer().decode([i for i in labels if i != IGNORE_INDEX]).split())
    others = [turn["content"] for turn in row.get("messages", row.get("prompt")) if turn["role"] != "assistant"]
    return all("".join(words.split()) in text for words in said(row)) and not any(
        "".join(words.split()) in text for words in others
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_and_labels_are_those_of_sft_trainer(trainer, name):
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    seen = 0
    for case, row in CASES.items():
        theirs = of_trl(trainer, in_parts(row) if name in PARTS_ONLY else row, template)
        ours = of_ours(row, template)
        if ours is None:
            assert theirs is None, f"{case}: refused, but SFTTrainer takes it"
            continue
        *tokens, wrong = ours
        seen += 1
        # rows that SFTTrainer would train on without their answer are found by the check
        assert wrong != holds(*tokens, row), f"{case}: {wrong}"
        if theirs is not None:
            compared = 1 if COUNTS_PROMPT and "prompt" in row else 2
            assert tuple(tokens)[:compared] == theirs[:compared], case
    assert seen >= 5
    # a template may render content parts otherwise; here they are joined, and the answer is there
    assert of_ours({"messages": PARTS}, template)[:2] == of_ours(CASES["single turn"], template)[:2]


def test_most_cases_are_compared(trainer):
    """SFTTrainer takes nearly all templates: the test above compares, and does not only check our own labels."""
    text = {name: (FOLDER / f"{name}.jinja").read_text(encoding="utf-8") for name in TEMPLATES}
    taken = [name for name in TEMPLATES if of_trl(trainer, CASES["single turn"], text[name]) is not None]
    assert len(taken) > 0.6 * len(TEMPLATES)
