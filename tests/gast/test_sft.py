"""GAST on TRL's SFTTrainer."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_gist import save_support_gradient
from hf_gist.config.gast import GASTConfig
from hf_gist.trainer import GASTMixin
from hf_gist.training.gast.setup import support_rows_of
from tests.helpers.gast import VOCABULARY, Recorder, build_model, reference_gradients, relative_error, support_rows_in


trl = pytest.importorskip("trl", reason="TRL is not installed")

WORDS = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(VOCABULARY - 3))]


def tokenizer():
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def text_rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def words():
        size = int(torch.randint(2, 8, (1,), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(3, VOCABULARY, (size,), generator=generator).tolist())

    return Dataset.from_list(
        [{"prompt": words() + " ", "completion": words(), "source": f"s{i % 3}"} for i in range(count)]
    )


def trainer_on(tmp_path, trainer_class, model, **options):
    changes = options.pop("changes", {})
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=8, max_steps=1, use_cpu=True, report_to=[], bf16=False,
        save_strategy="no", disable_tqdm=True, max_grad_norm=1e9, gradient_accumulation_steps=2, logging_steps=1,
        gradient_checkpointing=False, seed=1, **changes,
    )  # fmt: skip
    return trainer_class(
        model=model, args=arguments, train_dataset=text_rows(48), processing_class=tokenizer(), **options
    )


@pytest.mark.parametrize(("exported", "where"), [(False, "batch"), (True, "batch"), (True, "pass")])
def test_gradients_equal_the_reference(exported, where, tmp_path):
    if exported:
        from hf_gist.trainer import GASTSFTTrainer as trainer_class
    else:

        class trainer_class(GASTMixin, trl.SFTTrainer):
            pass

    config = GASTConfig(keep=3, support_batch_size=2, source_column="source")
    model = build_model("llama")
    # the default of older versions is another way to compute it, which gets a separate pass
    changes = {"loss_type": "nll"}
    more = {"gast_config": config, "support_dataset": text_rows(10, seed=5)}
    trainer = trainer_on(tmp_path, trainer_class, model, changes=changes, **more)
    recorder = Recorder().attach(trainer)
    with support_rows_in(where):
        trainer.train()
    assert trainer.gast.separate_because == ("" if where == "batch" else None)
    batches = [{n: b[n] for n in ("input_ids", "attention_mask", "labels")} for b in recorder.batches]
    items = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
    prepared = trainer._gast_support_set.dataset
    support = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in prepared]
    expected, masks, _ = reference_gradients(build_model("llama"), "llama", batches, support, config, items=items)
    for found, wanted in zip(recorder.masks, masks, strict=True):
        assert all(torch.equal(found[group], wanted[group]) for group in wanted)
    assert relative_error(recorder.gradients[0], expected) < 1e-5
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert "gast_alignment" in entry and "mean_token_accuracy" in entry
    assert trainer.gast.table.columns == ["s0", "s1", "s2"] and int(trainer.gast.table.seen.sum()) == 16


def test_whole_samples_with_a_gradient_saved_from_raw_rows(tmp_path):
    from hf_gist.trainer import GASTSFTTrainer

    file = str(tmp_path / "support.safetensors")
    changes = {"loss_type": "nll", "learning_rate": 30.0}
    plain = trainer_on(tmp_path / "plain", trl.SFTTrainer, build_model(), changes=changes)
    save_support_gradient(plain, text_rows(10, seed=5), file)
    prepared, _ = support_rows_of(plain, text_rows(10, seed=5), "dataset")
    assert not any(values for values in plain._metrics["eval"].values())
    config = GASTConfig(keep=3, group_by="model", mode="topk", redundancy=True, support=file)
    trainer = trainer_on(tmp_path / "gast", GASTSFTTrainer, build_model(), changes=changes, gast_config=config)
    recorder = Recorder().attach(trainer)
    trainer.train()
    batches = [{n: b[n] for n in ("input_ids", "attention_mask", "labels")} for b in recorder.batches]
    support = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in prepared]
    items = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
    expected, masks, _ = reference_gradients(
        build_model(), "llama", batches, support, config, items=items, lr=changes["learning_rate"]
    )
    assert all(torch.equal(left[0], right[0]) for left, right in zip(recorder.masks, masks, strict=True))
    assert relative_error(recorder.gradients[0], expected) < 1e-5


def test_support_samples_are_not_in_the_metrics_of_trl(tmp_path):
    class trainer_class(GASTMixin, trl.SFTTrainer):
        pass

    found = []
    for mode, where in (("all", "pass"), ("stochastic", "batch"), ("stochastic", "pass")):
        trainer = trainer_on(tmp_path / mode / where, trainer_class, build_model(), gast_config=GASTConfig(mode=mode))
        with support_rows_in(where):
            trainer.train()
        entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
        found.append([entry[name] for name in ("num_tokens", "loss", "mean_token_accuracy", "entropy")])
        assert not trainer._metrics["eval"]
    assert found[1] == pytest.approx(found[0], rel=1e-5) and found[2] == pytest.approx(found[0], rel=1e-5)


def test_another_loss_of_trl_gets_a_separate_pass(tmp_path):
    from hf_gist.trainer import GASTSFTTrainer

    trainer = trainer_on(
        tmp_path, GASTSFTTrainer, build_model(), changes={"loss_type": "dft"}, gast_config=GASTConfig(keep=3)
    )
    with support_rows_in("batch"):
        trainer.train()
    # some versions hand the loss over as a function
    assert "loss" in trainer.gast.separate_because


@pytest.mark.parametrize("changes", [{"packing": True, "max_length": 16}, {"padding_free": True, "max_length": None}])
def test_packed_rows_are_refused(changes, tmp_path):
    class trainer_class(GASTMixin, trl.SFTTrainer):
        pass

    with pytest.raises(ValueError, match="packing=False"):
        trainer_on(tmp_path, trainer_class, build_model(), changes=changes, gast_config=GASTConfig())
