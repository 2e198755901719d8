"""Loads models, tokenizers and adapters for the commands."""

import sys

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, load_peft_weights
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.utils import cached_file

from hf_gist.config.warmup import WarmupSettings


TOKENIZER_FILE = "tokenizer_config.json"


def has_tokenizer(adapter: str) -> bool:
    """Whether an adapter's folder or Hub repository holds a tokenizer."""
    found = cached_file(
        adapter,
        TOKENIZER_FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found is not None


def tokenizer_source(
    model: str, revision: str | None, adapter: str | None, given: str | None
) -> tuple[str, str | None]:
    """Where the tokenizer is: the one given, the adapter's own, or the model's.

    Args:
        model (`str`): folder or Hub id.
        revision (`str`, *optional*): of the model.
        adapter (`str`, *optional*): folder or Hub id of an adapter.
        given (`str`, *optional*): `--tokenizer_name_or_path`.

    Returns:
        `tuple[str, str | None]`: folder or Hub id, and its revision.
    """
    if given is not None:
        return given, None
    if adapter is not None and has_tokenizer(adapter):
        return adapter, None
    return model, revision


def load_tokenizer(name: str, revision: str | None, trust_remote_code: bool) -> tuple[PreTrainedTokenizerBase, int]:
    """The model's tokenizer, with right padding, and the end-of-text token as padding token if it has none.

    Returns:
        `tuple[PreTrainedTokenizerBase, int]`: the tokenizer, and its maximum number of tokens per row.
    """
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    limit = tokenizer.model_max_length
    # rows are truncated after tokenising, so the tokenizer must not warn about long rows
    tokenizer.model_max_length = VERY_LARGE_INTEGER
    return tokenizer, limit


def padding_collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForSeq2Seq:
    """The collator that pads `input_ids` and `labels`, used for the warm-up and for scoring."""
    return DataCollatorForSeq2Seq(tokenizer, padding=True)


def load_base(name: str, revision: str | None, dtype: str, trust_remote_code: bool) -> PreTrainedModel:
    """The base model, on a GPU if there is one."""
    model = AutoModelForCausalLM.from_pretrained(
        name, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code
    )
    if torch.cuda.is_available():
        model.to("cuda")  # type: ignore[arg-type]  # the wrapper of `to` in transformers is typed without `self`
    return model


def positions(model: PreTrainedModel) -> int:
    """The maximum number of tokens per row that the model supports."""
    config = model.config
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or sys.maxsize


def _rows_of_embeddings(base: PreTrainedModel, adapter: str) -> int:
    """Rows that the token embeddings must have for an adapter: those it holds, or those whose tokens it trains.

    Args:
        base (`PreTrainedModel`): the base model.
        adapter (`str`): folder or Hub id of the adapter.
    """
    embeddings = base.get_input_embeddings()
    name = next(name for name, module in base.named_modules() if module is embeddings)
    weights = load_peft_weights(adapter, device="cpu")
    ends = (f".{name}.weight", f".{name}.modules_to_save.weight")
    needed = [len(values) for key, values in weights.items() if key.endswith(ends)]
    trained = getattr(PeftConfig.from_pretrained(adapter), "trainable_token_indices", None) or []
    lists = trained.values() if isinstance(trained, dict) else [trained]
    needed += [max(indices) + 1 for indices in lists if indices]
    return max(needed, default=0)


def _resize_embeddings(base: PreTrainedModel, rows: int) -> None:
    """Give the base model more token embeddings, whose values an adapter then sets."""
    # the values that the adapter does not set must be the same in every run
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base.resize_token_embeddings(rows, mean_resizing=False)


def check_vocabulary(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a model has an embedding for every token of a tokenizer that is not its own.

    Args:
        model (`PeftModel`): with its adapter.
        tokenizer (`PreTrainedTokenizerBase`): the adapter's, or the one that was given.

    Raises:
        ValueError: with both numbers.
    """
    rows = len(model.get_input_embeddings().weight)  # type: ignore[operator]
    if len(tokenizer) > rows:
        raise ValueError(
            f"The tokenizer has {len(tokenizer):,} tokens, but the model has {rows:,} embeddings, and the adapter brings "
            "none for the added tokens. Save it with `save_pretrained(folder, save_embedding_layers=True)`, or give the "
            "model's tokenizer with `--tokenizer_name_or_path`."
        )


def load_adapter(base: PreTrainedModel, adapter: str) -> PeftModel:
    """The base model with a trained LoRA adapter, loaded as trainable.

    The embeddings of the base model are resized if the adapter was trained with added tokens.
    """
    rows = _rows_of_embeddings(base, adapter)
    if rows > len(base.get_input_embeddings().weight):  # type: ignore[arg-type]
        _resize_embeddings(base, rows)
    return PeftModel.from_pretrained(base, adapter, is_trainable=True)


def fresh_lora(base: PreTrainedModel, settings: WarmupSettings, seed: int) -> PeftModel:
    """A new LoRA on the base model; `B` is zero until the warm-up."""
    torch.manual_seed(seed)
    modules = settings.lora_target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=modules if modules == "all-linear" else [name.strip() for name in modules.split(",")],
    )
    return get_peft_model(base, config)
