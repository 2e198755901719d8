"""Run under `torchrun`: the `select()` of `test_scoring.py` by several processes. Usage: `FOLDER [fail]`."""

import json
import sys
from pathlib import Path

import torch
import transformers
from accelerate import PartialState

from tests.gradients.test_passes import choose
from tests.helpers.tiny import PaddingCollator


class Fails(PaddingCollator):
    """On process 1, in the middle of scoring."""

    calls = 0

    def __call__(self, rows):
        self.calls += 1
        if PartialState().process_index == 1 and self.calls == 12:
            raise ValueError("the label printer is on fire")
        return super().__call__(rows)


def main(folder: Path, fail: bool) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rank = PartialState(cpu=True).process_index
    try:
        selection = choose(folder, Fails() if fail else None)
    except Exception as error:
        (folder / f"rank{rank}.error").write_text(repr(error))
        PartialState().wait_for_everyone()
        raise
    result = {"indices": selection.indices, "scores": selection.scores.tolist()}
    (folder / f"rank{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "fail" in sys.argv[2:])
