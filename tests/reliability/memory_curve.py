"""Peak anonymous memory of one `select()` over a memory-mapped pool. Usage: `ROWS FOLDER`; prints bytes.

Anonymous memory, because the system can drop the pages of a mapped file.
"""

import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import Dataset, load_from_disk

from hf_gist import GISTConfig, select
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


def anonymous_bytes() -> int:
    """Memory of the process that is not backed by a file."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("RssAnon")).split()[1]) * 1024


class Peak(threading.Thread):
    """Samples the memory every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.running = 0, True

    def run(self) -> None:
        """Sample until `running` is false."""
        while self.running:
            self.bytes = max(self.bytes, anonymous_bytes())
            time.sleep(0.005)


def write_pool(rows: int, folder: Path) -> None:
    """Rows of 24 tokens, written batch by batch."""

    def batches():
        generator = np.random.default_rng(0)
        for _ in range(rows):
            ids = generator.integers(3, 99, 24).tolist()
            yield {"input_ids": ids, "labels": [-100] * 12 + ids[12:]}

    Dataset.from_generator(batches, cache_dir=str(folder / "cache")).save_to_disk(folder / "pool")


if __name__ == "__main__":
    count, where = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if not (where / "pool").exists():
        write_pool(count, where)
        raise SystemExit  # a fresh process measures
    pool, model = load_from_disk(where / "pool"), lora_model()
    targets = as_dataset(token_rows(32, seed=2))
    config = GISTConfig(budget=100, scoring_tokens_per_batch=4096)
    before, peak = anonymous_bytes(), Peak()
    peak.start()
    selection = select(model, pool, targets, config, data_collator=PaddingCollator(), progress=False)
    peak.running = False
    print(peak.bytes - before, selection.measurements.coordinates.numel() * 4, anonymous_bytes() - before)
