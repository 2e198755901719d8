"""Neither host nor device waits for the other while batches are scored, and results that come late are the same."""

import random
import warnings
from collections import Counter
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from hf_gist.functional.per_sample import flat_gradients
from hf_gist.functional.sketch import CountSketch
from hf_gist.functional.subspace import PARTS_AT_A_TIME, BatchTotals
from hf_gist.gist.scorers.base import AdamCheckpoint
from hf_gist.gist.scorers.rds_plus import HiddenStateVectors
from hf_gist.gist.scorers.sketched import SketchedVectors
from hf_gist.gradients import passes
from hf_gist.gradients.collect import collect_coordinates, collect_vectors
from hf_gist.gradients.losses import prepared, sample_losses
from hf_gist.gradients.models import adapter_parameters, model_device, to_device
from hf_gist.gradients.modes import scoring_mode
from hf_gist.gradients.partial import Shards
from hf_gist.gradients.passes import DatasetPass, RowVectors
from hf_gist.gradients.row_losses.base import TokenLoss
from hf_gist.gradients.transfers import BasisSlices, HostCopy, _CopiedAhead, one_behind
from hf_gist.gradients.vectors import GradientVectors
from tests.helpers.tiny import PaddingCollator, lora_model, token_rows


ROWS = token_rows(40, seed=1)
OPERATIONS_PER_MATRIX = {"gist": 7, "less": 12, "sketch": 7}
"""ATen operations beyond the frozen model's forward and backward pass, with the views."""

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
READS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "equal", "is_nonzero")


class Operations(TorchDispatchMode):
    """Counts the ATen operations, and notes those whose result the host has to wait for on a GPU."""

    def __init__(self):
        super().__init__()
        self.counts, self.reads = Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.counts[name] += 1
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in READS or masks:
            self.reads.append(name)
        return function(*args, **(kwargs or {}))


def adam_vectors(model):
    moments = {name: (torch.randn_like(p), torch.rand_like(p)) for name, p in adapter_parameters(model).items()}
    return SketchedVectors(model, CountSketch(64, 0), 1.0, AdamCheckpoint(1.0, moments, 10, (0.9, 0.999), 1e-8))


REPRESENTATIONS = {
    "gist": GradientVectors,
    "sketch": lambda model: SketchedVectors(model, CountSketch(64, 0)),
    "less": adam_vectors,
    "rds_plus": HiddenStateVectors,
}


def eager_model(**lora):
    """For the other implementations, transformers reads the attention mask once in every forward pass."""
    return lora_model(base={"attn_implementation": "eager", "num_hidden_layers": 6}, **lora)


def batch_of(model, vectors, collator=None, rows=ROWS[:6]):
    """A batch on the model's device, and what computes its rows."""
    device = model_device(model)
    generator = torch.Generator().manual_seed(0)
    basis = {name: torch.randn(3, size, generator=generator).to(device) for name, size in vectors.sizes.items()}
    wanted = RowVectors(vectors, TokenLoss(model), BasisSlices(basis, device), 3)
    return to_device(prepared(model, (collator or PaddingCollator())(rows)), device), wanted


def operations_of(model, batch, wanted):
    """Operations of a batch, after a first one has made what is kept over the batches."""
    with scoring_mode(model):
        wanted.queue(batch, list(range(6)), model_device(model))
        with Operations() as found:
            wanted.queue(batch, list(range(6)), model_device(model))
    return found


def floor_of(model, batch):
    """Operations of a forward and backward pass with a frozen adapter."""
    trainable = list(adapter_parameters(model).values())
    handle = model.get_input_embeddings().register_forward_hook(lambda m, args, output: output.requires_grad_())
    for parameter in trainable:
        parameter.requires_grad_(False)
    with scoring_mode(model), Operations() as found:
        sample_losses(model, batch)[0].sum().backward()
    handle.remove()
    for parameter in trainable:
        parameter.requires_grad_(True)
    return found


@pytest.mark.parametrize("name", OPERATIONS_PER_MATRIX)
def test_operations_for_a_matrix(name):
    model = eager_model()
    vectors = REPRESENTATIONS[name](model)
    batch, wanted = batch_of(model, vectors)
    more = operations_of(model, batch, wanted).counts.total() - floor_of(model, batch).counts.total()
    assert more / len(adapter_parameters(model)) <= OPERATIONS_PER_MATRIX[name]


@pytest.mark.parametrize("name", REPRESENTATIONS)
@pytest.mark.parametrize("trained_head", [False, True])
def test_nothing_is_read_from_the_device(name, trained_head):
    model = eager_model(**({"modules_to_save": ["lm_head"]} if trained_head else {}))
    vectors = REPRESENTATIONS[name](model)
    assert operations_of(model, *batch_of(model, vectors)).reads == []


@pytest.mark.parametrize("architecture", ["gpt2", "bert", "t5"])
def test_nothing_is_read_from_the_device_by_other_losses(architecture):
    model = lora_model(architecture)
    vectors = GradientVectors(model)
    batch, wanted = batch_of(model, vectors, PaddingCollator(), token_rows(6, architecture=architecture))
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "_labelled")}
    with scoring_mode(model), Operations() as own:
        model.get_base_model()(**inputs)
    assert operations_of(model, batch, wanted).reads == own.reads


def test_left_padding_is_found_on_the_host():
    model = eager_model()
    vectors = GradientVectors(model)
    batch, wanted = batch_of(model, vectors, PaddingCollator("left"))
    assert "position_ids" in batch and operations_of(model, batch, wanted).reads == []


def test_a_batch_gives_the_same_prepared_or_not():
    for architecture in ("llama", "bert", "t5"):
        model, rows = lora_model(architecture), token_rows(6, architecture=architecture)
        batch = PaddingCollator()(rows)
        with scoring_mode(model):
            found, expected = sample_losses(model, prepared(model, batch)), sample_losses(model, batch)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


# ---- Totals ----


@pytest.mark.parametrize("parts", [0, 1, PARTS_AT_A_TIME, 2 * PARTS_AT_A_TIME + 3])
def test_totals_are_sums_in_float64(parts):
    generator = torch.Generator().manual_seed(0)
    vectors = [10.0 ** (part % 5) * torch.randn(4, 30, generator=generator) for part in range(parts)]
    basis = [torch.randn(30, 3, generator=generator) for _ in range(parts)]
    totals = BatchTotals(4, 3, torch.device("cpu"))
    for values, slice_ in zip(vectors, basis, strict=True):
        totals.add(values, slice_)
    losses = torch.rand(4, generator=generator)
    found = totals.with_losses(losses)
    squares = sum((torch.linalg.vector_norm(v, dim=1).double().square() for v in vectors), torch.zeros(4).double())
    products = sum(((v @ b).double() for v, b in zip(vectors, basis, strict=True)), torch.zeros(4, 3).double())
    assert torch.equal(found[:, 0], losses)
    torch.testing.assert_close(found[:, 1], squares.sqrt().float(), rtol=2e-7, atol=0)
    torch.testing.assert_close(found[:, 2:], products.float(), rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_projections_are_in_32_bits_also_under_autocast(dtype):
    dataset_pass = DatasetPass(lora_model(), PaddingCollator(), 100, dtype, progress=False)
    vectors, _ = collect_vectors(dataset_pass, ROWS, "rows")
    basis = {name: torch.randn(3, values.shape[1]) for name, values in vectors.items()}
    found = collect_coordinates(dataset_pass, ROWS, basis, "rows").coordinates
    expected = sum(values.double() @ basis[name].double().T for name, values in vectors.items())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


# ---- Results that come late ----


class LateCopy(HostCopy):
    """Has the values only once they were waited for, as a copy from a GPU; counts what is under way."""

    under_way = 0
    most = 0

    def __init__(self, values):
        self._later = values.clone()
        super().__init__(values.fill_(-77))
        LateCopy.under_way += 1
        LateCopy.most = max(LateCopy.most, LateCopy.under_way)

    def wait(self):
        LateCopy.under_way -= 1
        self._values.copy_(self._later)
        return super().wait()


class RunsOutHalfway:
    """Gradients that run out of memory for batches of more than two rows, after all matrices but one."""

    def __init__(self, model):
        self.inner, self.failed = GradientVectors(model), 0
        self.sizes = self.inner.sizes

    def __call__(self, batch, gradients, loss):
        left = len(self.sizes) if len(batch["labels"]) <= 2 else len(self.sizes) - 1

        def some(name, values):
            nonlocal left
            left -= 1
            if left < 0:
                self.failed += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            gradients(name, values)

        return self.inner(batch, some, loss)


def test_late_results_of_split_batches_are_complete_in_every_shard(tmp_path, monkeypatch):
    model = lora_model(base={"num_hidden_layers": 4})
    basis = {name: torch.randn(3, size) for name, size in GradientVectors(model).sizes.items()}
    dataset_pass = DatasetPass(model, PaddingCollator(), 70, progress=False)
    whole = collect_coordinates(dataset_pass, ROWS, basis, "rows")
    monkeypatch.setattr(passes, "HostCopy", LateCopy)
    tight = RunsOutHalfway(model)
    found = collect_coordinates(dataset_pass, ROWS, basis, "rows", tight, Shards(tmp_path, "late", every=1))
    assert tight.failed > 5 and LateCopy.under_way == 0 and LateCopy.most > 4
    saved = {name: torch.full_like(values, -1) for name, values in vars(found).items()}
    paths = list(tmp_path.glob("late-*"))
    assert len(paths) > 5
    for path in paths:
        shard = load_file(path)
        for name, values in saved.items():
            values[shard["rows"]] = shard[name]
    for name, values in vars(found).items():
        assert torch.equal(values, saved[name])
        torch.testing.assert_close(values, getattr(whole, name), rtol=1e-4, atol=1e-5)


def test_a_batch_is_finished_before_the_error_of_the_next():
    done = []

    def batches(error):
        yield "first"
        yield "second"
        raise error

    for error in (ValueError("no"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            done.extend(one_behind(batches(error)))
        seen = []
        with pytest.raises(type(error)):
            for item in one_behind(batches(error)):
                seen.append(item)
        assert seen == ["first", "second"]


def test_an_item_comes_after_the_next_is_made():
    made = []
    seen = [(item, len(made)) for item in one_behind(made.append(i) or i for i in range(3))]
    assert seen == [(0, 2), (1, 3), (2, 3)] and list(one_behind([])) == []


# ---- A basis in host memory ----


class Event:
    done = False


class Stream:
    """A CUDA stream whose work is done by `run_interleaved`."""

    current = None

    def __init__(self, device=None):
        self.queue = []

    def record_event(self):
        event = Event()
        self.queue.append(lambda: setattr(event, "done", True) or True)
        return event

    def wait_event(self, event):
        self.queue.append(lambda: event.done)

    def wait_stream(self, other):
        self.wait_event(other.record_event())

    def do(self, work):
        self.queue.append(lambda: (work(), True)[1])


@contextmanager
def on_stream(stream):
    before, Stream.current = Stream.current, stream
    yield
    Stream.current = before


def run_interleaved(streams, rng):
    """Do the work of all streams, each in its order; where one waits for an event, another goes on."""
    queues = [list(stream.queue) for stream in streams]
    for _ in range(100_000):
        waiting = [queue for queue in queues if queue]
        if not waiting:
            return
        queue = rng.choice(waiting)
        if queue[0]():
            del queue[0]
    raise AssertionError("the streams wait for each other")


def test_copies_made_ahead_are_neither_early_nor_late(monkeypatch):
    copy = torch.Tensor.copy_
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream.current)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch.Tensor, "copy_", lambda to, of, non_blocking: Stream.current.do(lambda: copy(to, of)))
    for trial in range(40):
        rng, main = random.Random(trial), Stream()
        sources = {name: torch.randn(3, rng.randint(1, 9)).T for name in "abcdef"}
        with on_stream(main):
            copies = _CopiedAhead(sources, torch.device("cpu"))
            for _ in range(4):
                # some batches stop half-way: they do not fit into memory
                for name in list(sources)[: rng.choice([2, 6, 6])]:
                    found = copies(name)
                    main.do(partial(torch.testing.assert_close, found, sources[name], rtol=0, atol=0))
        run_interleaved([main, copies._stream], rng)


# ---- On a GPU ----


def waits(run):
    """What a call returns, and how often it waits for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            found = run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found, sum("called a synchronizing" in str(warning.message) for warning in caught)


@NEEDS_GPU
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_queueing_a_batch_waits_only_where_the_model_itself_does(name):
    model = eager_model().cuda()
    vectors = REPRESENTATIONS[name](model)
    device = model_device(model)

    def send():
        return to_device(prepared(model, PaddingCollator()(ROWS[:6])), device)

    with scoring_mode(model):
        batch, wanted = batch_of(model, vectors)
        expected = wanted.queue(batch, list(range(6)), device)
        # transformers makes its attention mask from a number on the host
        _, of_the_model = waits(lambda: sample_losses(model, send()))
        found, of_the_batch = waits(lambda: wanted.queue(send(), list(range(6)), device))
    assert of_the_batch <= of_the_model
    facts = [passes.RowFacts.empty(6, 3) for _ in range(2)]
    for queued, into in zip((expected, found), facts, strict=True):
        queued.write(into)
    for one, other in zip(vars(facts[0]).values(), vars(facts[1]).values(), strict=True):
        torch.testing.assert_close(one, other)


@NEEDS_GPU
def test_a_basis_on_the_host_gives_the_same():
    model = lora_model(base={"num_hidden_layers": 4}).cuda()
    basis = {name: torch.randn(3, size) for name, size in GradientVectors(model).sizes.items()}
    dataset_pass = DatasetPass(model, PaddingCollator(), 70, progress=False)
    near = collect_coordinates(dataset_pass, ROWS, {n: v.cuda() for n, v in basis.items()}, "rows")
    far = collect_coordinates(dataset_pass, ROWS, {n: v.pin_memory() for n, v in basis.items()}, "rows")
    torch.testing.assert_close(far.coordinates, near.coordinates, rtol=1e-4, atol=1e-4)


@NEEDS_GPU
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_sixteen_bit_factors_are_not_rounded_again(dtype):
    a, d = torch.randn(3, 20, 8, device="cuda", dtype=dtype), torch.randn(3, 20, 5, device="cuda", dtype=dtype)
    found = flat_gradients("linear", "weight", a, d)
    expected = torch.bmm(d.double().transpose(1, 2), a.double()).flatten(1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
