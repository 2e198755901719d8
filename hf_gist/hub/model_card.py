"""Model cards: a section on data selection and its metadata, added to the existing card if there is one."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import logging

from hf_gist.config.files import save_config
from hf_gist.config.gast import GASTConfig
from hf_gist.config.gist import GISTConfig
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
from hf_gist.hub.templating import citations, kept_samples, pictures, render
from hf_gist.report import save_selection_figures
from hf_gist.report.charts import FIGURES
from hf_gist.utils.disk import write, write_json
from hf_gist.version import __version__


logger = logging.get_logger(__name__)

BEGIN = "<!-- hf-gist:begin -->"
END = "<!-- hf-gist:end -->"

SECTION = re.compile(rf"^{BEGIN}$.*^{END}$\n?", re.MULTILINE | re.DOTALL)

GAST_GROUPS = {
    "block": "each transformer block was",
    "module": "each adapted module was",
    "model": "all adapted modules were",
}
GAST_SUPPORTS = {
    "dataset": "that of a few support samples",
    "momentum": "the first moment of the optimizer",
    "batch": "the mean gradient of the batch",
}


# ---- The section ----


def section(run: Run) -> str:
    """The data selection section of a card, from `BEGIN` to `END`."""
    defaults = {"sources": None, "command": None, "datasets": dataset_rows(run.manifest)}
    return render(
        "model_section.md",
        **defaults | _selection_part(run) | _gast_part(run),
        begin=Verbatim(BEGIN),
        end=Verbatim(END),
        trained=run.trained,
        results=run.results,
        configs=_configs(run),
        python=_python(run),
        versions=versions_of(run.manifest),
        version=__version__,
        citations=citations(),
    )


def _selection_part(run: Run) -> dict[str, Any]:
    """The template's values on the selection."""
    if run.selection is None or run.artifacts is None:
        return {"selection": None}
    has_adapter = not run.trained and (run.folder / WARMUP_ADAPTER).is_dir()
    return selection_values(run.selection, run.artifacts, run.folder) | {
        "selection": run.selection,
        "warmup_adapter": WARMUP_ADAPTER if has_adapter else None,
        "load_adapter": f'PeftModel.from_pretrained(model, "{run.address}", subfolder="{WARMUP_ADAPTER}")',
        "command": select_command(run.selection, f"hf://{run.address}"),
    }


def _gast_part(run: Run) -> dict[str, Any]:
    """The template's values on GAST."""
    if run.gast is None:
        return {"gast": None}
    picture = run.folder / PICTURE_FILE
    return {
        "gast": run.gast,
        "gast_rule": Verbatim(_gast_rule(run.gast)),
        "gast_images": pictures([picture] if picture.is_file() else [], run.folder),
    }


def _gast_rule(config: GASTConfig) -> str:
    """What updated what, without the first words of the sentence."""
    updated = f"{GAST_GROUPS[config.group_by]} updated by"
    support = GAST_SUPPORTS.get(config.support, "a saved gradient")
    if config.mode == "positive":
        above = f"a cosine above {config.threshold:g} with {support}"
        return f"{updated} the samples of the batch on each device whose gradients have {above}"
    chosen = f"{updated} {kept_samples(config.keep)} of the samples of the batch on each device,"
    if config.mode == "random":
        return f"{chosen} drawn at random"
    if config.mode == "stochastic":
        return f"{chosen} drawn by how well each sample's gradient aligns with {support}"
    if config.redundancy:
        overlap = "and overlap least with those already chosen (the greedy rule of GREATS)"
        return f"{chosen} chosen one by one as those whose gradients align best with {support} {overlap}"
    return f"{chosen} those whose gradients align best with {support}"


def selection_values(selection: Selection, artifacts: Path, folder: Path) -> dict[str, Any]:
    """The values of the templates `selection.md`, `model_section.md` and `dataset_card.md` on a selection.

    Args:
        selection (`Selection`): what was selected.
        artifacts (`Path`): folder of its artifacts; its figures are written there if they are missing or outdated.
        folder (`Path`): folder of the card.
    """
    sources, more_sources = source_counts(selection)
    kept = len(selection.indices)
    pool = len(selection.scores)
    return {
        "kept": kept,
        "pool": pool,
        "share": share(kept, pool),
        "method": selection.method,
        "by_target": looks_at_targets(selection),
        "facts": selection_facts(selection),
        "datasets": dataset_rows(selection.manifest),
        "sources": sources,
        "more_sources": more_sources,
        "images": pictures(_selection_figures(selection, artifacts), folder),
    } | _cost_values(artifacts)


def _selection_figures(selection: Selection, artifacts: Path) -> list[Path]:
    """The PNG files of a selection, written unless those in the folder are newer than its manifest."""
    paths = sorted(path for path in artifacts.glob("*.png") if path.stem in FIGURES)
    written = (artifacts / MANIFEST).stat().st_mtime
    if paths and all(path.stat().st_mtime >= written for path in paths):
        return paths
    try:
        return sorted(save_selection_figures(selection, artifacts))
    except ImportError as error:
        logger.warning(f"The card has no figures. {error}")
        return []


def _cost_values(artifacts: Path) -> dict[str, Any]:
    ledger = CostLedger.load(artifacts)
    if ledger is None:
        return {"costs": None, "break_even": None}
    return {"costs": _without_empty_columns(ledger.table()), "break_even": Verbatim(ledger.break_even())}


def _without_empty_columns(table: list[list[str]]) -> list[list[str]]:
    kept = [i for i in range(len(table[0])) if any(row[i] for row in table[1:])]
    return [[row[i] for i in kept] for row in table]


def _configs(run: Run) -> list[dict[str, str]]:
    return [{"title": type(c).__name__, "file": c.FILE, "yaml": c.to_yaml()} for c in _published(run)]


def _published(run: Run) -> list[GISTConfig | GASTConfig]:
    """The configurations of a run, without local paths."""
    found: list[GISTConfig | GASTConfig] = [] if run.selection is None else [run.selection.config]
    return found if run.gast is None else [*found, run.gast.published()]


def _python(run: Run) -> str:
    """Python code that reuses the configurations of the run."""
    names = []
    lines = []
    if run.selection is not None:
        names += ["GISTConfig", "GISTDataSelectorCallback"]
        lines.append(f'gist = GISTConfig.from_pretrained("{run.address}")')
        lines.append(
            "callback = GISTDataSelectorCallback(gist, target_dataset=targets)  # Trainer(..., callbacks=[callback])"
        )
    if run.gast is not None:
        names += ["GASTConfig", "GASTTrainer"]
        lines.append(f'gast = GASTConfig.from_pretrained("{run.address}")')
        rows = ", support_dataset=targets" if "support_dataset" in run.gast_manifest else ""
        lines.append(f"trainer = GASTTrainer(..., gast_config=gast{rows})")
    return "\n".join([f"from hf_gist import {', '.join(sorted(names))}", "", *lines])


def versions_of(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and version of the packages that a run used."""
    return [("hf_gist", manifest.get("hf_gist", __version__)), *manifest.get("versions", {}).items()]


# ---- Metadata ----


def _as_list(value: Any) -> list[Any]:
    """A metadata field, which may be missing, a single value or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _union(*lists: list[Any]) -> list[Any]:
    """All items in order, each once."""
    return list(dict.fromkeys(item for values in lists for item in values))


def _names_local_folder(tag: str) -> bool:
    """Whether a tag written by peft has a local path: `base_model:adapter:/home/...`."""
    place = str(tag).removeprefix("base_model:").split(":", 1)[-1]
    return str(tag).startswith("base_model:") and public_name(place) != place


def merge_metadata(data: ModelCardData, run: Run, title: str) -> None:
    """Add the facts of a run to the metadata of a card; values that are local paths are removed.

    Args:
        data (`ModelCardData`): the metadata, changed in place.
        run (`Run`): the run.
        title (`str`): name of the model, if the card has none and there are evaluation results.
    """
    method = ["gist"] if run.selection is not None and is_gist(run.selection) else []
    tags = [tag for tag in _as_list(data.tags) if not _names_local_folder(tag)]
    data.tags = _union(tags, ["hf-gist"], method, ["gast"] if run.gast else [])
    data.library_name = data.library_name or "peft"
    bases = _hub_names(data.base_model) or _base_model(run)
    data.base_model = bases[0] if len(bases) == 1 else bases or None
    data.datasets = _union(_hub_names(data.datasets), hub_ids(run.manifest)) or None
    kept = [old for old in data.eval_results or [] if not any(old.is_equal_except_value(new) for new in run.results)]
    data.eval_results = [*kept, *run.results] or None
    if data.eval_results:
        data.model_name = data.model_name or title


def _hub_names(names: Any) -> list[str]:
    """Those of the names in a metadata field that are not local paths."""
    return [name for name in _as_list(names) if public_name(name) == name]


def _base_model(run: Run) -> list[str]:
    """The base model, if it came from the Hub: only then is its revision recorded."""
    model = run.manifest.get("model") or {}
    return [model["name_or_path"]] if model.get("revision") else []


# ---- The card ----


def write_card(run: Run) -> Path:
    """Write `README.md` and the configurations of a run to its folder.

    An existing card keeps its text and metadata; only an earlier data selection section is replaced.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: if the metadata of the existing card cannot be read.
    """
    for config in _published(run):
        save_config(config, run.folder)
    if run.gast is not None and run.gast_manifest:
        write_json(run.folder / GAST_MANIFEST, run.gast_manifest)
    path = run.folder / README
    title = run.repo_id.split("/")[-1] if run.repo_id else run.folder.absolute().name
    card = _updated_card(path, run, title) if path.is_file() else _new_card(run, title)
    write(path, lambda name: Path(name).write_text(str(card), encoding="utf-8"))
    return path


def _updated_card(path: Path, run: Run, title: str) -> ModelCard:
    ours = section(run)
    card = ModelCard.load(path)
    merge_metadata(card.data, run, title)
    if SECTION.search(card.text):
        # a function, because backslashes in a replacement string would be escape sequences
        card.text = SECTION.sub(lambda _: ours, card.text)
    else:
        card.text = f"{card.text.rstrip()}\n\n{ours}"
    return card


def _new_card(run: Run, title: str) -> ModelCard:
    data = ModelCardData()
    merge_metadata(data, run, title)
    base_model = (run.manifest.get("model") or {}).get("name_or_path")
    body = render("new_card.md", title=title, base_model=base_model)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n{section(run)}")
