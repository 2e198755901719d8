"""The counters of a GAST run in a checkpoint."""

import json
import os
from pathlib import Path
from typing import Any

from hf_gist.utils.disk import write_json


STATE_FILE = "gast_state.json"


def save_state(folder: str | os.PathLike, state: dict[str, Any]) -> None:
    """Write the counters of a run into a checkpoint folder."""
    write_json(Path(folder) / STATE_FILE, state)


def load_state(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Read the counters; `None` if the checkpoint was written without GAST."""
    path = Path(folder) / STATE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
