"""GASTTrainer as a Trainer: the stock result when nothing is masked, refusals, warnings, logs, reports and resume."""

import json
import warnings

import pyarrow.parquet
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from hf_gist.config.gast import GASTConfig
from hf_gist.config.gist import GISTConfig
from hf_gist.errors import NoEffectWarning
from hf_gist.gast.groups import describe_groups, find_groups, summarise_groups
from hf_gist.trainer import GASTMixin, GASTTrainer
from hf_gist.training.gast.setup import check_trainer
from tests.helpers.gast import (
    Recorder,
    arguments,
    build_model,
    collate,
    relative_error,
    rows,
    same_masks,
    support_rows_in,
    train,
)
from tests.helpers.pairs import preference_rows, preference_trainer


LONG = {"max_steps": 20, "gradient_accumulation_steps": 2, "optim": "adamw_torch", "max_grad_norm": 1.0}


def weights(trainer):
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left) and left.keys() == right.keys()


def quiet(**options):
    return GASTConfig(**{"keep": 3, **options})


# ---- Nothing masked ----


def test_mode_all_is_the_stock_trainer_bit_for_bit(tmp_path):
    data = rows("llama", 64)
    results = []
    for folder, trainer_class in (("a", Trainer), ("b", GASTTrainer)):
        model = build_model("llama", dropout=0.3)
        trainer, recorder = train(
            model, tmp_path / folder, data, trainer_class=trainer_class, config=GASTConfig(mode="all"), **LONG
        )
        results.append((weights(trainer), recorder.gradients, torch.get_rng_state()))
    (stock, stock_gradients, stock_rng), (gast, gast_gradients, gast_rng) = results
    assert trainer.state.global_step == 20 and len(gast_gradients) == 20
    assert same(stock, gast)
    assert all(same(left, right) for left, right in zip(stock_gradients, gast_gradients, strict=True))
    assert torch.equal(stock_rng, gast_rng)


@pytest.mark.parametrize("options", [{}, {"mode": "random"}, {"support": "momentum"}, {"group_by": "module"}])
def test_masking_leaves_the_order_of_the_data_and_the_dropout_alone(options, tmp_path):
    data = rows("llama", 64)
    seen = []
    for folder, trainer_class in (("a", Trainer), ("b", GASTTrainer)):
        model = build_model("llama", dropout=0.3)
        _, recorder = train(
            model, tmp_path / folder, data, trainer_class=trainer_class, config=quiet(**options), max_steps=4
        )
        seen.append((recorder, torch.get_rng_state()))
    (stock, stock_rng), (gast, gast_rng) = seen
    for left, right in zip(stock.batches, gast.batches, strict=True):
        assert torch.equal(left["input_ids"], right["input_ids"])
    assert torch.equal(stock_rng, gast_rng)
    assert relative_error(gast.gradients[0], stock.gradients[0]) > 0.1


def test_mixed_precision(tmp_path):
    data, gradients = rows("llama", 16), []
    keeps_all = GASTConfig(mode="positive", threshold=-0.9999)
    for folder, trainer_class in (("a", Trainer), ("b", GASTTrainer)):
        _, recorder = train(
            build_model(), tmp_path / folder, data, trainer_class=trainer_class, config=keeps_all, bf16=True
        )
        gradients.append(recorder.gradients[0])
        assert all(gradient.dtype == torch.float32 for gradient in gradients[-1].values())
    # both round to bfloat16, in another order
    assert relative_error(gradients[1], gradients[0]) < 3e-2


def test_half_precision_adapters(tmp_path):
    model = build_model().to(torch.bfloat16)
    trainer, recorder = train(model, tmp_path, rows(), config=quiet())
    assert all(gradient.dtype == torch.bfloat16 for gradient in recorder.gradients[0].values())
    assert all(mask.sum() == 3 for mask in trainer.gast.last.masks.values())


def test_the_start_up_message_lists_groups_and_matrices(tmp_path):
    groups, unmasked = find_groups(build_model("bert", modules_to_save=["classifier"]), "block", "unmasked")
    message = describe_groups(groups, unmasked)
    assert "20 matrices in 2 groups" in message and "encoder.layer.1: " in message
    assert "attention.self.query.lora_A.default.weight [2, 32]" in message
    assert "trained on the whole batch: " in message and "classifier" in message
    line = summarise_groups(groups, unmasked)
    assert (
        "20 matrices in 2 groups" in line and "encoder.layer.1;" in line and "classifier" in line and "\n" not in line
    )


def test_masking_starts_at_start_step(tmp_path):
    data = rows("llama", 64)
    _, stock = train(build_model(), tmp_path / "a", data, trainer_class=Trainer, max_steps=3)
    trainer, gast = train(build_model(), tmp_path / "b", data, config=quiet(start_step=2), max_steps=3)
    assert all(same(stock.gradients[i], gast.gradients[i]) for i in range(2))
    assert not same(stock.gradients[2], gast.gradients[2])
    assert trainer.gast.batches == 1


# ---- Support ----


@pytest.mark.parametrize(("every", "expected"), [(1, 6), (4, 2)])
def test_support_passes_are_counted_in_optimizer_steps(every, expected, tmp_path):
    trainer, _ = train(
        build_model(), tmp_path, rows("llama", 64), config=quiet(support_every=every), max_steps=6,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    assert trainer.gast.supports == expected and trainer.gast.batches == 12


def test_random_mode_needs_no_support(tmp_path):
    trainer, _ = train(build_model(), tmp_path, rows("llama", 64), config=quiet(mode="random"), max_steps=2)
    assert trainer.gast.supports == 0
    assert all(mask.sum() == 3 for mask in trainer.gast.last.masks.values())


@pytest.mark.parametrize(("optim", "key"), [("adamw_torch", "exp_avg"), ("sgd", "momentum_buffer")])
def test_momentum_support_is_the_first_moment(optim, key, tmp_path):
    found = []

    class Compare(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
            support = trainer.gast.support
            if support is not None:
                found.append(
                    all(torch.equal(support[n], optimizer.state[model.get_parameter(n)][key]) for n in support)
                )

    # `optim_args="momentum=0.9"` needs transformers 5.3 or newer
    momentum = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})} if optim == "sgd" else {}
    trainer = GASTTrainer(
        model=build_model(), args=arguments(tmp_path, max_steps=3, optim=optim), train_dataset=rows(),
        data_collator=collate, gast_config=quiet(support="momentum"), callbacks=[Compare()], **momentum,
    )  # fmt: skip
    trainer.train()
    assert found == [True, True]


def test_momentum_support_needs_an_optimizer_with_momentum(tmp_path):
    with pytest.raises(ValueError, match="SGD keeps none"):
        train(build_model(), tmp_path, rows(), config=quiet(support="momentum"), max_steps=3, optim="sgd")


def test_support_rows_without_labels_warn(tmp_path):
    blank = [{**row, "labels": [-100] * len(row["labels"])} for row in rows("llama", 8)]
    with pytest.warns(NoEffectWarning, match="support gradient is zero"):
        train(build_model(), tmp_path, rows(), config=quiet(), support=blank)


def test_samples_without_labels_are_not_kept(tmp_path):
    data = rows("llama", 8)
    for row in data[:4]:
        row["labels"] = [-100] * len(row["labels"])
    trainer, recorder = train(build_model(), tmp_path, data, config=quiet())
    unlabelled = (recorder.batches[0]["labels"] == -100).all(1)
    assert unlabelled.sum() == 4
    assert all(mask.sum() == 3 and not (mask & unlabelled).any() for mask in trainer.gast.last.masks.values())


# ---- Refusals ----


def refused(match, *, model=None, config=None, trainer_class=GASTTrainer, data=None, trainer_kwargs=None, **changes):
    with pytest.raises(ValueError, match=match):
        train(
            model if model is not None else build_model(), changes.pop("folder"), data or rows(),
            config=config or quiet(), trainer_class=trainer_class, trainer_kwargs=trainer_kwargs, **changes,
        )  # fmt: skip


def test_setups_that_cannot_be_masked_are_refused(tmp_path):
    refused("per_device_train_batch_size", folder=tmp_path, per_device_train_batch_size=1)
    refused("torch_compile", folder=tmp_path, torch_compile=True)


def test_models_that_cannot_be_masked_are_refused(tmp_path):
    bare = build_model().unload()
    refused("not for full fine-tuning", folder=tmp_path, model=bare.requires_grad_(False))
    model = build_model()
    model.get_base_model().model.layers[1].input_layernorm.weight.requires_grad_(True)
    refused("input_layernorm.weight", folder=tmp_path, model=model)
    model = build_model()
    model.get_base_model().config.layerdrop = 0.1
    refused("layerdrop", folder=tmp_path, model=model)


def test_trainable_embeddings_outside_the_blocks_stay_unmasked(tmp_path):
    model = build_model(modules_to_save=["embed_tokens"])
    trainer, recorder = train(model, tmp_path / "a", rows(), config=quiet())
    _, stock = train(build_model(modules_to_save=["embed_tokens"]), tmp_path / "b", rows(), trainer_class=Trainer)
    name = next(n for n in recorder.gradients[0] if "embed_tokens" in n)
    assert name in trainer.gast.unmasked
    assert torch.allclose(recorder.gradients[0][name], stock.gradients[0][name], rtol=1e-4, atol=1e-7)
    refused("embed_tokens", folder=tmp_path, model=model, config=quiet(outside_blocks="masked"))


def weighted(outputs, labels, num_items_in_batch=None):
    token = torch.nn.functional.cross_entropy(
        outputs["logits"][:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
    )
    return (token.sum(1) * torch.arange(1, len(labels) + 1)).sum()


def test_losses_that_cannot_be_split_are_refused(tmp_path):
    way_out = r"Override `sample_weights\(inputs\)`.*or set `mode='all'`"
    refused(f"cannot be split by row. {way_out}", folder=tmp_path, trainer_kwargs={"compute_loss_func": contrastive})
    refused(f"a rule that is not known.*{way_out}", folder=tmp_path, trainer_kwargs={"compute_loss_func": weighted})

    class Mixing(GASTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return outputs.loss + 1000 * outputs.logits.mean((1, 2)).var(correction=0)

    refused(f"Mixing.compute_loss mixes the rows of a batch.*{way_out}", folder=tmp_path, trainer_class=Mixing)

    class Split(Mixing):
        def sample_weights(self, inputs):
            return (inputs["labels"][:, 1:] != -100).sum(1).float()

    train(build_model(), tmp_path, rows(), config=quiet(), trainer_class=Split)


def test_a_loss_that_calls_the_stock_loss_is_masked_like_it(tmp_path):
    class Own(GASTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    trainer, own = train(build_model(), tmp_path / "a", rows(), config=quiet(), trainer_class=Own)
    _, stock = train(build_model(), tmp_path / "b", rows(), config=quiet())
    assert trainer._gast_weighting == "mean over labelled tokens"
    for name, gradient in stock.gradients[0].items():
        torch.testing.assert_close(own.gradients[0][name], gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_preference_pairs_are_refused_with_the_callback_as_way_out(tmp_path, kind):
    pytest.importorskip("trl", reason="preference trainers are TRL's")
    trainer = preference_trainer(kind, tmp_path, preference_rows(8))
    with pytest.raises(ValueError, match="a row of .* is a pair of sequences. Use GISTDataSelectorCallback"):
        check_trainer(trainer, GASTConfig(), False)


def contrastive(outputs, labels, num_items_in_batch=None):
    pooled = outputs["logits"].mean(1)
    return torch.nn.functional.cross_entropy(pooled @ pooled.T, torch.arange(len(labels)))


def packed(batch):
    ids = torch.cat([torch.tensor(row["input_ids"]) for row in batch])[None]
    positions = torch.cat([torch.arange(len(row["input_ids"])) for row in batch])[None]
    return {"input_ids": ids, "labels": ids.clone(), "position_ids": positions}


def test_packed_rows_are_refused(tmp_path):
    trainer = GASTTrainer(
        model=build_model(), args=arguments(tmp_path), train_dataset=rows(), data_collator=packed, gast_config=quiet()
    )
    with pytest.raises(ValueError, match="packing=False"):
        trainer.train()


def test_a_loss_that_runs_the_model_twice_is_refused(tmp_path):
    class Twice(GASTTrainer):
        def sample_weights(self, inputs):
            return torch.ones(len(inputs["labels"]))

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs).loss + model(**inputs).loss

    with pytest.raises(ValueError, match="more than once|used more than once|differentiated twice"):
        train(build_model(), tmp_path, rows(), trainer_class=Twice, config=quiet(mode="random"))


def test_a_matrix_that_never_reports_is_an_error(tmp_path):
    model = build_model()
    layer = model.get_base_model().model.layers[1].self_attn.q_proj
    # what a fused kernel does: the adapter's matrices are used, its modules are not called
    layer.forward = lambda x: (
        layer.base_layer(x) + x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    )
    refused("fused LoRA kernel uses the adapter of .*layers.1.self_attn.q_proj", folder=tmp_path, model=model)


def test_hooks_are_gone_after_an_error(tmp_path):
    model = build_model()

    class Broken(GASTTrainer):
        def compute_loss(self, *args, **kwargs):
            if not self.gast.batches:
                super().compute_loss(*args, **kwargs)
            raise RuntimeError("on purpose")

        def sample_weights(self, inputs):
            return torch.ones(len(inputs["labels"]))

    with pytest.raises(RuntimeError, match="on purpose"):
        train(model, tmp_path, rows(), trainer_class=Broken, config=quiet())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---- Warnings ----


def test_a_mask_that_drops_nothing_warns(tmp_path):
    keeps_all = GASTConfig(mode="positive", threshold=-0.9999)
    with pytest.warns(NoEffectWarning, match="every cosine .* is above `threshold=-0.9999`"):
        train(build_model(), tmp_path, rows("llama", 64), config=keeps_all, max_steps=12)
    with pytest.warns(NoEffectWarning, match="start_step=50"):
        train(build_model(), tmp_path, rows(), config=quiet(start_step=50), max_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        train(build_model(), tmp_path, rows("llama", 64), config=quiet(), max_steps=12)


# ---- Logs and reports ----


def test_metrics_are_logged_every_logging_steps(tmp_path):
    trainer, _ = train(
        build_model(),
        tmp_path,
        rows("llama", 64),
        config=quiet(),
        max_steps=6,
        logging_strategy="steps",
        logging_steps=2,
    )
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for entry in logs:
        assert entry["gast_kept_fraction"] == pytest.approx(3 / 8)
        assert -1 <= entry["gast_alignment"] <= 1
        assert 0 < entry["gast_draw_entropy"] <= 1
        assert 0 <= entry["gast_layer_agreement"] <= 1


@pytest.mark.parametrize("column", [None, "source"])
@pytest.mark.figures
def test_selection_is_written_by_layer_and_source(column, tmp_path):
    data = Dataset.from_list(rows("llama", 64))
    trainer, recorder = train(
        build_model(), tmp_path, data, config=quiet(source_column=column), max_steps=5, eval_strategy="steps",
        eval_steps=2, trainer_kwargs={"eval_dataset": data},
    )  # fmt: skip
    table = Dataset.from_parquet(str(tmp_path / "gast_selection.parquet"), cache_dir=str(tmp_path / "cache"))
    assert (tmp_path / "gast_selection.png").stat().st_size > 1000
    seen = {row["source"]: row["seen"] for row in table}
    assert sum(seen.values()) == 5 * 8 and sum(row["kept"] for row in table) == 5 * 3 * 3
    if column:
        assert set(seen) == {"even", "odd"}
        by_id = {tuple(row["input_ids"]): row["source"] for row in rows("llama", 64)}
        kept = {"even": 0, "odd": 0}
        for batch, masks in zip(recorder.batches, recorder.masks, strict=True):
            for ids, mask, keep in zip(batch["input_ids"], batch["attention_mask"], masks[1], strict=True):
                kept[by_id[tuple(ids[mask.bool()].tolist())]] += int(keep)
        layer = trainer.gast.groups[1].name
        assert {row["source"]: row["kept"] for row in table if row["layer"] == layer} == kept


# ---- Resume ----


@pytest.mark.parametrize("where", ["batch", "pass"])
@pytest.mark.parametrize(
    "options", [{"support_every": 4}, {"support": "momentum"}, {"support_every": 1, "group_by": "module"}]
)
def test_resume_continues_the_draws_exactly(options, where, tmp_path):
    with support_rows_in(where):
        check_resume(options, tmp_path)


def check_resume(options, tmp_path):
    data = rows("llama", 64)
    shared = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    whole, recorded = train(build_model(dropout=0.2), tmp_path, data, config=quiet(**options), **shared)
    model = build_model(dropout=0.2)
    resumed = GASTTrainer(
        model=model, args=arguments(tmp_path, **shared), train_dataset=data, data_collator=collate,
        gast_config=quiet(**options),
    )  # fmt: skip
    again = Recorder().attach(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert len(again.masks) == 10
    assert same_masks(recorded.masks[6:], again.masks)
    assert same(weights(whole), weights(resumed))
    assert torch.equal(whole.gast.table.kept, resumed.gast.table.kept)
    state = json.loads((tmp_path / "checkpoint-3" / "gast_state.json").read_text())
    assert state["batches"] == 6


def test_a_finished_run_that_is_resumed_keeps_its_statistics(tmp_path, recwarn):
    data = rows("llama", 16)
    shared = {"num_train_epochs": 2, "max_steps": -1, "save_strategy": "epoch"}
    whole, _ = train(build_model(), tmp_path, data, config=quiet(start_step=1), **shared)
    before = pyarrow.parquet.read_table(tmp_path / "gast_selection.parquet")
    about = json.loads((tmp_path / "gast_run.json").read_text())
    resumed = GASTTrainer(
        model=build_model(), args=arguments(tmp_path, **shared), train_dataset=data, data_collator=collate,
        gast_config=quiet(start_step=1),
    )  # fmt: skip
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step
    assert pyarrow.parquet.read_table(tmp_path / "gast_selection.parquet") == before
    assert json.loads((tmp_path / "gast_run.json").read_text()) == about
    assert not [w for w in recwarn if issubclass(w.category, NoEffectWarning)]


def test_a_config_of_another_type_is_named(tmp_path):
    for wrong in ({"keep": 2}, GISTConfig()):
        with pytest.raises(ValueError, match=f"`gast_config` must be a GASTConfig, got {type(wrong).__name__}"):
            GASTTrainer(model=build_model(), args=arguments(tmp_path), train_dataset=rows(), gast_config=wrong)


def test_support_rows_of_a_mode_without_support_have_no_effect(tmp_path):
    with pytest.warns(NoEffectWarning, match="`support_dataset` has no effect with `mode='random'`"):
        trainer = GASTTrainer(
            model=build_model(), args=arguments(tmp_path, max_steps=1), train_dataset=rows(), data_collator=collate,
            gast_config=quiet(mode="random"), support_dataset=rows(),
        )  # fmt: skip
    trainer.train()
    assert "support_dataset" not in json.loads((tmp_path / "gast_manifest.json").read_text())


def test_the_sources_of_a_stream_are_refused(tmp_path):
    stream = Dataset.from_list(rows()).to_iterable_dataset()
    with pytest.raises(ValueError, match="`source_column='source'`: the sources of a stream are not known"):
        GASTTrainer(
            model=build_model(), args=arguments(tmp_path, max_steps=1), train_dataset=stream, data_collator=collate,
            gast_config=quiet(source_column="source"),
        )  # fmt: skip


def test_resume_with_other_groups_is_refused(tmp_path):
    shared = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    train(build_model(), tmp_path, rows(), config=quiet(), **shared)
    other = GASTTrainer(
        model=build_model(), args=arguments(tmp_path, **shared), train_dataset=rows(), data_collator=collate,
        gast_config=quiet(group_by="module"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="other groups"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_mixin_is_ahead_of_any_trainer():
    assert issubclass(GASTTrainer, GASTMixin) and GASTTrainer.__mro__[1] is GASTMixin


def test_a_training_that_starts_over_with_a_smaller_batch_counts_from_there(tmp_path):
    class RunsOutOnce(GASTTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            if self.state.global_step == 2 and len(inputs["labels"]) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().training_step(model, inputs, num_items_in_batch)

    data = Dataset.from_list(rows("llama", 32))
    with pytest.warns(NoEffectWarning, match="GAST dropped no sample in .*`keep=4` is not smaller"):
        trainer, _ = train(
            build_model(), tmp_path, data, config=GASTConfig(keep=4), trainer_class=RunsOutOnce, max_steps=12,
            auto_find_batch_size=True,
        )  # fmt: skip
    assert trainer._train_batch_size == 4
    assert trainer.gast.batches == 12 and int(trainer.gast.table.seen.sum()) == 12 * 4
