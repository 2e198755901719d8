"""Model cards: a section on data selection and the metadata that goes with it, in whatever card is there already."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import logging

from hf_gist.config.files import save_config
from hf_gist.costs.ledger import CostLedger
from hf_gist.data.provenance import public_name
from hf_gist.gast.table import PICTURE_FILE
from hf_gist.gist.artifacts import MANIFEST
from hf_gist.gist.selection import Selection
from hf_gist.hub.card_facts import (
    dataset_rows,
    hub_ids,
    is_gist,
    looks_at_targets,
    select_command,
    selection_facts,
    share,
    source_counts,
)
from hf_gist.hub.markdown import Verbatim
from hf_gist.hub.run import GAST_MANIFEST, README, WARMUP_ADAPTER, Run
from hf_gist.hub.templating import citations, pictures, render
from hf_gist.report import save_selection_figures
from hf_gist.utils.disk import write, write_json
from hf_gist.version import __version__


logger = logging.get_logger(__name__)

BEGIN, END = "<!-- hf-gist:begin -->", "<!-- hf-gist:end -->"

SECTION = re.compile(rf"^{BEGIN}$.*^{END}$\n?", re.MULTILINE | re.DOTALL)

GAST_MODES = {
    "stochastic": "drawn by how well each sample's gradient agrees with that of a few support samples",
    "random": "drawn at random",
    "topk": "those whose gradients agree best with that of a few support samples",
}


def draw(selection: Selection, artifacts: Path) -> list[Path]:
    """The pictures of a selection, drawn unless those there are of this selection."""
    drawn, written = sorted(artifacts.glob("*.png")), (artifacts / MANIFEST).stat().st_mtime
    if drawn and all(path.stat().st_mtime >= written for path in drawn):
        return drawn
    try:
        return sorted(save_selection_figures(selection, artifacts))
    except ImportError as error:
        logger.warning(f"The card has no plots. {error}")
        return []


def _configs(run: Run) -> list[dict[str, str]]:
    configs = [run.selection.config if run.selection else None, run.gast]
    return [{"title": type(c).__name__, "file": c.FILE, "yaml": c.to_yaml()} for c in configs if c is not None]


def _python(run: Run) -> str:
    """How the configurations are used again."""
    names, lines = [], []
    if run.selection is not None:
        names += ["GISTConfig", "GISTDataSelectorCallback"]
        lines.append(f'gist = GISTConfig.from_pretrained("{run.address}")')
        lines.append(
            "callback = GISTDataSelectorCallback(gist, target_dataset=targets)  # Trainer(..., callbacks=[callback])"
        )
    if run.gast is not None:
        names += ["GASTConfig", "GASTTrainer"]
        lines.append(f'gast = GASTConfig.from_pretrained("{run.address}")')
        lines.append("trainer = GASTTrainer(..., gast_config=gast, support_dataset=targets)")
    return "\n".join([f"from hf_gist import {', '.join(sorted(names))}", "", *lines])


def versions_of(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Versions of the packages of a run."""
    return [("hf_gist", manifest.get("hf_gist", __version__)), *manifest.get("versions", {}).items()]


def section(run: Run) -> str:
    """The data-selection section of a card, between its marks."""
    values: dict[str, Any] = {}
    if run.selection is not None:
        warmup = WARMUP_ADAPTER if not run.trained and (run.folder / WARMUP_ADAPTER).is_dir() else None
        values = selection_values(run.selection, run.artifacts, run.folder) | {
            "warmup_adapter": warmup,
            "load_adapter": f'PeftModel.from_pretrained(model, "{run.address}", subfolder="{WARMUP_ADAPTER}")',
            "command": select_command(run.selection, f"hf://{run.address}"),
        }
    gast_picture = run.folder / PICTURE_FILE
    return render(
        "model_section.md",
        **{"sources": None, "command": None, "datasets": dataset_rows(run.manifest)} | values,
        begin=Verbatim(BEGIN),
        end=Verbatim(END),
        selection=run.selection,
        trained=run.trained,
        gast=run.gast,
        gast_mode=Verbatim(GAST_MODES.get(run.gast.mode, "")) if run.gast else None,
        gast_images=pictures([gast_picture] if run.gast and gast_picture.is_file() else [], run.folder),
        results=run.results,
        configs=_configs(run),
        python=_python(run),
        versions=versions_of(run.manifest),
        version=__version__,
        citations=citations(),
    )


def selection_values(selection: Selection, artifacts: Path, folder: Path) -> dict[str, Any]:
    """What the templates say of a selection whose artifacts are in `artifacts`, on a card in `folder`."""
    sources, more = source_counts(selection)
    ledger = CostLedger.load(artifacts)
    kept, pool = len(selection.indices), len(selection.scores)
    return {
        "kept": kept,
        "pool": pool,
        "share": share(kept, pool),
        "method": selection.method,
        "by_target": looks_at_targets(selection),
        "facts": selection_facts(selection),
        "datasets": dataset_rows(selection.manifest),
        "sources": sources,
        "more_sources": more,
        "images": pictures(draw(selection, artifacts), folder),
        "costs": _without_empty_columns(ledger.table()) if ledger else None,
        "break_even": Verbatim(ledger.break_even()) if ledger else None,
    }


def _without_empty_columns(table: list[list[str]]) -> list[list[str]]:
    kept = [i for i in range(len(table[0])) if any(row[i] for row in table[1:])]
    return [[row[i] for i in kept] for row in table]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _united(*lists: Any) -> list[Any]:
    return list(dict.fromkeys(item for values in lists for item in _as_list(values)))


def _is_private(tag: str) -> bool:
    """Whether a tag of peft's names a local folder: `base_model:adapter:/home/...`."""
    place = str(tag).removeprefix("base_model:").split(":", 1)[-1]
    return str(tag).startswith("base_model:") and public_name(place) != place


def merge_metadata(data: ModelCardData, run: Run, title: str) -> None:
    """Add what is known to the metadata of a card; nothing is claimed twice, and no folder of this machine is named."""
    method = ["gist"] if run.selection is not None and is_gist(run.selection) else []
    tags = [tag for tag in _as_list(data.tags) if not _is_private(tag)]
    data.tags = _united(tags, ["hf-gist"], method, ["gast"] if run.gast else [])
    data.library_name = data.library_name or "peft"
    bases = [base for base in _as_list(data.base_model) if public_name(base) == base]
    model = run.manifest.get("model") or {}
    bases = bases or ([model["name_or_path"]] if model.get("revision") else [])
    named = [name for name in _as_list(data.datasets) if public_name(name) == name]
    data.datasets = _united(named, hub_ids(run.manifest)) or None
    data.base_model = bases[0] if len(bases) == 1 else bases or None
    kept = [old for old in data.eval_results or [] if not any(old.is_equal_except_value(new) for new in run.results)]
    data.eval_results = [*kept, *run.results] or None
    if data.eval_results:
        data.model_name = data.model_name or title


def write_card(run: Run) -> Path:
    """Write `README.md` and the configurations beside it; a card that is there keeps all but an older section of ours.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: if the card that is there has metadata that cannot be read.
    """
    for config in (run.selection.config if run.selection else None, run.gast):
        if config is not None:
            save_config(config, run.folder)
    if run.gast is not None and run.gast_manifest:
        write_json(run.folder / GAST_MANIFEST, run.gast_manifest)
    path = run.folder / README
    title = run.repo_id.split("/")[-1] if run.repo_id else run.folder.absolute().name
    ours = section(run)
    if path.is_file():
        card = ModelCard.load(path)
        merge_metadata(card.data, run, title)
        # a function, because a replacement text would have its backslashes read
        old = card.text
        card.text = SECTION.sub(lambda _: ours, old) if SECTION.search(old) else f"{old.rstrip()}\n\n{ours}"
    else:
        data = ModelCardData()
        merge_metadata(data, run, title)
        base = (run.manifest.get("model") or {}).get("name_or_path")
        body = render("new_card.md", title=title, base_model=base)
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n{ours}")
    write(path, lambda name: Path(name).write_text(str(card), encoding="utf-8"))
    return path
