"""The base model of the demo: a tokenizer trained on the generated text, and a small Llama pre-trained on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, set_seed

from hf_gist.commands.bench import quiet_arguments
from hf_gist.commands.demo.training import ON_CPU
from hf_gist.utils.step_bar import with_step_bar


SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
TURN_TOKENS = ["<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "<user>{{ message['content'] }}"
    "{% else %}<assistant>{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class ModelSizes:
    """The shape of the Llama and the length of its pre-training.

    Args:
        vocabulary (`int`): tokens of the byte-level BPE; every digit is a separate token.
        hidden (`int`): hidden size.
        layers (`int`): transformer blocks.
        heads (`int`): attention heads.
        block (`int`): tokens of one pre-training block.
        batch (`int`): blocks of one pre-training step.
        epochs (`int`): passes over the pre-training text.
        learning_rate (`float`): peak learning rate of the pre-training.
    """

    vocabulary: int = 600
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    block: int = 128
    batch: int = 16
    epochs: int = 2
    learning_rate: float = 3e-3


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template that marks the assistant's turns.

    Args:
        texts (`Sequence[str]`): the text to train on.
        vocabulary (`int`): number of tokens; at least the 256 bytes and the special tokens.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*SPECIAL_TOKENS.values(), *TURN_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **SPECIAL_TOKENS)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def pack(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, block: int) -> Dataset:
    """All texts concatenated and cut into blocks of `block` tokens, with the loss on every token."""
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    stream = [token for text in ids for token in [tokenizer.bos_token_id, *text, tokenizer.eos_token_id]]
    blocks = [stream[start : start + block] for start in range(0, len(stream) - block + 1, block)]
    return Dataset.from_dict({"input_ids": blocks, "labels": blocks})


def build_llama(tokenizer: PreTrainedTokenizerFast, sizes: ModelSizes, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama."""
    set_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.hidden,
            intermediate_size=3 * sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pretrain(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, sizes: ModelSizes, folder: Path, seed: int
) -> LlamaForCausalLM:
    """A small base model: every weight trained on plain text, without chat turns.

    Args:
        texts (`Sequence[str]`): the text; disjoint from the pool, the targets and the test rows.
        tokenizer (`PreTrainedTokenizerFast`): see [`train_tokenizer`].
        sizes (`ModelSizes`): shape and length.
        folder (`Path`): output folder of the `Trainer`.
        seed (`int`): seed of the weights and of the order.
    """
    model = build_llama(tokenizer, sizes, seed)
    arguments = quiet_arguments(
        folder,
        seed=seed,
        warmup_steps=10,
        per_device_train_batch_size=sizes.batch,
        num_train_epochs=sizes.epochs,
        learning_rate=sizes.learning_rate,
        **ON_CPU,
    )
    trainer = Trainer(model, arguments, train_dataset=pack(texts, tokenizer, sizes.block))
    with_step_bar(trainer, "pre-training")
    trainer.train()
    return model
