"""A full disk: a small mounted filesystem, with slightly more space at every attempt."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from datasets import Dataset
from pyarrow import parquet
from safetensors.torch import load_file

from hf_gist import GISTConfig, Selection, select
from hf_gist.commands.main import main
from hf_gist.gradients.partial import PartialScores
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows
from tests.helpers.words import chats, save_model
from tests.reliability.jobs import rows_in_shards


PAGE, SIZE = 4096, 512 * 1024
POOL, TARGETS = token_rows(40, seed=1), token_rows(5, seed=2)
CONFIG = GISTConfig(budget=8, scoring_tokens_per_batch=40, save_every=2)
READERS = {
    ".safetensors": load_file,
    ".parquet": parquet.read_table,
    ".json": lambda path: json.loads(path.read_text()),
}


class SmallDisk:
    """A mounted filesystem; `leave` fills it up with one large file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ballast = folder, folder / "ballast"

    def leave(self, pages: int) -> None:
        self.ballast.unlink(missing_ok=True)
        free = os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize
        self.ballast.write_bytes(b"\0" * max(0, free - pages * PAGE))


@pytest.fixture
def disk(tmp_path):
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root may mount a filesystem")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no `mount` on this system")
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        # lazy: tensors that are still alive after a failure are mapped files
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def whole_files(folder: Path) -> set[Path]:
    """All files in a folder, each of which must be complete and under its final name."""
    files = {path for path in folder.rglob("*") if path.is_file()}
    for path in files:
        assert path.suffix in READERS, f"{path} was left behind"
        READERS[path.suffix](path)
    return files


def choose(folder: Path) -> Selection:
    return select(
        lora_model(), as_dataset(POOL), as_dataset(TARGETS), CONFIG,
        data_collator=PaddingCollator(), output_dir=folder, progress=False,
    )  # fmt: skip


def test_scoring_goes_on_with_every_page_that_is_freed(disk, tmp_path, monkeypatch):
    undisturbed = choose(tmp_path / "undisturbed")
    held = []
    remove = PartialScores.remove
    monkeypatch.setattr(PartialScores, "remove", lambda self: (held.extend(rows_in_shards(self.folder)), remove(self)))
    out, failed, finished, pages = disk.folder / "out", [], set(), 0
    for _ in range(200):
        disk.leave(pages)
        try:
            selection = choose(out)
            break
        except OSError as error:
            assert "No space left" in str(error), error
            names = [word for word in str(error).split() if word.startswith(str(out))]
            assert len(names) == 1, error
            failed.append(Path(names[0]).name.split("-")[0])
        left = whole_files(out)
        # the finished part is kept, and the next attempt resumes after it
        assert finished <= left
        finished, pages = left, 1 if left > finished else pages + 1
    order = ["key.json", "targets.safetensors", "stage0", "scores.parquet", "coordinates.safetensors", "manifest.json"]
    assert [name for name in dict.fromkeys(failed) if name in order] == order
    # every row was scored once in all attempts together
    assert sorted(held) == list(range(len(POOL)))
    assert selection.indices == undisturbed.indices
    for name in ("coordinates.safetensors", "subspace.safetensors", "scores.parquet"):
        assert (out / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert not (out / "partial").exists()


def test_a_selection_that_does_not_fit_leaves_none_or_the_one_before(disk, tmp_path):
    selection = choose(tmp_path / "elsewhere")
    folder = disk.folder / "out"
    selection.save(folder)
    before = {path.name: path.read_bytes() for path in whole_files(folder)}
    disk.leave(0)
    with pytest.raises(OSError, match=r"out/scores\.parquet cannot be written .*No space left"):
        selection.reselect(budget=9).save(folder)
    assert {path.name: path.read_bytes() for path in whole_files(folder)} == before
    disk.leave(20)
    selection.reselect(budget=9).save(folder)
    assert len(Selection.load(folder).indices) == 9


def test_the_command_says_which_file_and_goes_on(disk, tmp_path, capsys):
    save_model(tmp_path / "model")
    Dataset.from_list(chats(40)).to_json(tmp_path / "pool.jsonl")
    Dataset.from_list(chats(60)[40:46]).to_json(tmp_path / "targets.jsonl")
    flags = ["select", "--model_name_or_path", str(tmp_path / "model"), "--train_file", str(tmp_path / "pool.jsonl")]
    flags += ["--target_file", str(tmp_path / "targets.jsonl"), "--lora_target_modules", "q_proj", "--budget", "5"]
    disk.leave(0)
    assert main([*flags, "--output_dir", str(disk.folder / "out")]) == 2
    assert f"{disk.folder}/out/warmup_adapter cannot be written" in capsys.readouterr().err
    disk.leave(SIZE // PAGE)
    assert main([*flags, "--output_dir", str(disk.folder / "out")]) == 0
    assert main([*flags, "--output_dir", str(tmp_path / "roomy")]) == 0
    rows = [(folder / "selected.jsonl").read_text() for folder in (disk.folder / "out", tmp_path / "roomy")]
    assert rows[0] == rows[1] and len(rows[0].splitlines()) == 5
