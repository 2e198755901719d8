"""The fast per-sample gradients against the public batch-of-one oracle."""

import copy
import random

import pytest
import torch
from peft import LoraConfig

from hf_gist import per_sample_gradients_reference
from hf_gist.data.batches import plan_batches
from hf_gist.functional import token_losses
from hf_gist.gradients.collect import collect_vectors
from hf_gist.gradients.lora import find_tracked
from hf_gist.gradients.losses import sample_losses
from hf_gist.gradients.modes import scoring_mode
from hf_gist.gradients.passes import DatasetPass
from hf_gist.gradients.row_losses.base import TokenLoss
from hf_gist.gradients.vectors import per_sample_backward
from tests.helpers.tiny import ARCHITECTURES, VOCABULARY, PaddingCollator, lora_model, token_rows


def worst_relative_error(model, rows, collator, reference_model=None):
    reference = per_sample_gradients_reference(reference_model or model, rows, collator)
    fast, facts = collect_vectors(DatasetPass(model, collator, 64, progress=False), rows, "rows")
    worst = 0.0
    for i, expected in enumerate(reference):
        if expected is None:
            assert facts.label_tokens[i] == 0 and facts.norms[i] == 0
            continue
        assert set(expected) == set(fast)
        norm = torch.sqrt(sum(g.double().square().sum() for g in expected.values()))
        assert norm > 0
        torch.testing.assert_close(facts.norms[i].double(), norm, rtol=1e-5, atol=0)
        for name, gradient in expected.items():
            assert gradient.norm() > 0
            error = (fast[name][i].view_as(gradient) - gradient).norm() / gradient.norm()
            worst = max(worst, error.item())
    return worst


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_oracle_on_every_matrix(architecture, variant):
    """In float64, where rounding is no excuse: what is left is that of losses and gradients to float32 at the end."""
    model = lora_model(architecture, lora_dropout=0.1, **variant).double()
    rows = token_rows(7, architecture=architecture)
    assert worst_relative_error(model, rows, PaddingCollator()) <= 2e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_is_as_exact_as_the_loop(architecture):
    model, rows = lora_model(architecture), token_rows(7, architecture=architecture)
    truth = per_sample_gradients_reference(copy.deepcopy(model).double(), rows, PaddingCollator())
    loop = per_sample_gradients_reference(model, rows, PaddingCollator())
    fast, _ = collect_vectors(DatasetPass(model, PaddingCollator(), 64, progress=False), rows, "rows")
    for row, expected in enumerate(truth):
        for name, gradient in expected.items():
            norm = gradient.norm()
            error = (fast[name][row].view_as(gradient) - gradient).norm() / norm
            assert error <= max(1e-5, 4 * (loop[row][name] - gradient).norm() / norm)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "t5"])
def test_left_padding_changes_nothing(architecture):
    model = lora_model(architecture)
    rows = token_rows(7, architecture=architecture)
    collator = PaddingCollator("left", label_side="right" if architecture == "t5" else "left")
    assert worst_relative_error(model, rows, collator) <= 1e-5


def test_left_padding_is_refused_where_positions_depend_on_the_batch():
    model = lora_model("bert")
    with pytest.raises(ValueError, match="padding_side = 'right'"):
        collect_vectors(
            DatasetPass(model, PaddingCollator("left"), 64, progress=False), token_rows(5, architecture="bert"), "r"
        )


def test_a_row_without_labels_has_no_gradient_and_disturbs_no_other():
    model = lora_model()
    rows = token_rows(5)
    rows.insert(2, {"input_ids": [5, 6, 7], "labels": [-100] * 3})
    assert worst_relative_error(model, rows, PaddingCollator()) <= 1e-5


def test_modules_to_save_are_covered():
    model = lora_model(modules_to_save=["up_proj"])
    assert any("modules_to_save" in name for t in find_tracked(model) for name in t.parameters.values())
    assert worst_relative_error(model, token_rows(6), PaddingCollator()) <= 1e-5


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "lora", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}], ids=str
)
def test_a_trained_output_head_is_covered(lora, tied):
    model = lora_model(base={"tie_word_embeddings": tied}, **lora)
    assert any("lm_head" in tracked.name for tracked in find_tracked(model))
    assert worst_relative_error(model, token_rows(6), PaddingCollator()) <= 1e-5


def test_only_the_active_adapter_counts():
    model = lora_model()
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model.add_adapter("default2", config)
    model.set_adapter("default2")
    names = [name for t in find_tracked(model) for name in t.parameters.values()]
    assert names and all(".default2." in name for name in names)
    assert worst_relative_error(model, token_rows(5), PaddingCollator()) <= 1e-5
    for name, parameter in model.named_parameters():
        if ".default." in name:
            parameter.requires_grad_(True)
    assert names == [name for t in find_tracked(model) for name in t.parameters.values()]


def test_bf16_autocast_stays_close_to_fp32():
    model, rows, collator = lora_model(), token_rows(6), PaddingCollator()
    exact, _ = collect_vectors(DatasetPass(model, collator, 64, "float32", False), rows, "rows")
    rounded, _ = collect_vectors(DatasetPass(model, collator, 64, "bfloat16", False), rows, "rows")
    whole, other = (torch.cat([g[name] for name in exact], 1) for g in (exact, rounded))
    cosine = torch.nn.functional.cosine_similarity(whole, other)
    assert (cosine > 0.995).all() and not torch.equal(whole, other)


def test_losses_are_the_models_own():
    model, rows, collator = lora_model().eval(), token_rows(6), PaddingCollator()
    losses, counts = sample_losses(model, collator(rows))
    for i, row in enumerate(rows):
        batch = collator([row])
        torch.testing.assert_close(losses[i], model(**batch).loss, rtol=1e-5, atol=1e-6)
        assert counts[i] == sum(label != -100 for label in row["labels"][1:])


def test_logits_are_made_at_labelled_positions_only():
    model = lora_model()
    batch = PaddingCollator()(token_rows(6))
    seen = []
    handle = model.get_output_embeddings().register_forward_hook(lambda m, a, out: seen.append(out.shape))
    with scoring_mode(model):
        _, counts = sample_losses(model, batch)
    handle.remove()
    assert seen == [(1, int(counts.sum()), 99)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [1, 2, 7])
def test_token_losses_in_chunks_are_cross_entropy(monkeypatch, dtype, positions):
    monkeypatch.setattr(token_losses, "CHUNK_VALUES", 2 * VOCABULARY)
    generator = torch.Generator().manual_seed(positions)
    logits = (8 * torch.randn(positions, VOCABULARY, generator=generator)).to(dtype)
    targets = torch.randint(VOCABULARY, (positions,), generator=generator)
    weights = torch.rand(positions, generator=generator)
    found, expected = (logits.clone().requires_grad_() for _ in range(2))
    ours = token_losses.token_losses(found, targets)
    theirs = torch.nn.functional.cross_entropy(expected.float(), targets, reduction="none")
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert torch.equal(ours, theirs)
    assert expected.grad.abs().max() > 0 and torch.equal(found.grad, expected.grad)


@pytest.mark.parametrize(("positions_at_a_time", "bytes_a_logit"), [(400, 4), (10, 0)])
def test_many_logits_have_no_copies_in_fp32(monkeypatch, positions_at_a_time, bytes_a_logit):
    monkeypatch.setattr(token_losses, "CHUNK_VALUES", positions_at_a_time * VOCABULARY)
    logits, kept = torch.randn(400, VOCABULARY).to(torch.bfloat16).requires_grad_(), {}

    def keep(tensor):
        if tensor.dtype == torch.float32:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = token_losses.token_losses(logits, torch.zeros(400, dtype=torch.long))
    small = 4 * 400 * 2
    assert len(losses) == 400 and bytes_a_logit * logits.numel() <= sum(kept.values()) <= (
        bytes_a_logit * logits.numel() + small
    )


def test_nothing_of_size_batch_times_d_is_handed_over():
    model = lora_model()
    total = sum(t.numel() for t in find_tracked(model))
    sizes = []
    with scoring_mode(model):
        per_sample_backward(
            TokenLoss(model),
            PaddingCollator()(token_rows(4)),
            find_tracked(model),
            lambda name, g: sizes.append(g.shape[1]),
        )
    assert sum(sizes) == total and max(sizes) < total / 4


def state_of(model):
    return (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [p.grad for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        [getattr(m, "cast_input_dtype_enabled", None) for m in model.modules()],
        torch.get_rng_state().tolist(),
        random.getstate(),
    )


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("fails", [False, True])
def test_model_and_random_state_are_as_before_also_after_an_error(variant, fails):
    model = lora_model(lora_dropout=0.1, **variant)
    model.train()
    model.base_model.model.model.layers[0].eval()
    before = state_of(model)
    rows = token_rows(4)

    class Breaks(PaddingCollator):
        def __call__(self, batch):
            torch.rand(3), random.random()
            if fails and len(batch) < 4:
                raise KeyError("broken row")
            return super().__call__(batch)

    dataset_pass = DatasetPass(model, Breaks(), 24, progress=False)
    if fails:
        with pytest.raises(KeyError):
            collect_vectors(dataset_pass, rows, "rows")
    else:
        collect_vectors(dataset_pass, rows, "rows")
    assert state_of(model) == before


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}, {"bias": "lora_only", "lora_bias": True}], ids=str)
def test_hooks_on_gradients_do_not_hear_of_it(variant):
    # DDP and DeepSpeed reduce gradients in such hooks, and there is none
    model = lora_model(**variant)
    heard = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(heard.append)
    collect_vectors(DatasetPass(model, PaddingCollator(), 64, progress=False), token_rows(3), "rows")
    assert not heard


def test_an_adapter_that_is_merged_or_disabled_is_refused():
    model = lora_model()
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"merged into .*q_proj.* call `model.unmerge_adapter\(\)` first"):
        find_tracked(model)
    model.unmerge_adapter()
    with model.disable_adapter(), pytest.raises(ValueError, match="disabled on .*q_proj"):
        find_tracked(model)
    assert find_tracked(model)


def test_a_module_that_no_gradient_reaches_is_an_error():
    model = lora_model()
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    layer.forward = layer.base_layer.forward
    with pytest.raises(ValueError, match="No gradient reached the adapter of .*layers.1.mlp.down_proj"):
        collect_vectors(DatasetPass(model, PaddingCollator(), 64, progress=False), token_rows(3), "rows")


def test_batches_are_sorted_whole_and_within_budget():
    rng = random.Random(0)
    lengths = [rng.randint(1, 50) for _ in range(200)] + [500]
    batches = list(plan_batches(lengths, len(lengths), 128))
    assert sorted(i for batch in batches for i in batch) == list(range(201))
    assert batches[0] == [200]
    assert all(len(b) * max(lengths[i] for i in b) <= 128 for b in batches[1:])
    longest = [max(lengths[i] for i in b) for b in batches]
    assert longest == sorted(longest, reverse=True)
