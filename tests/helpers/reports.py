"""Selections and pages for the tests of the report."""

from html.parser import HTMLParser

import torch

from hf_gist import GISTConfig, Selection
from hf_gist.functional.measurements import Measurements


HOSTILE = (
    "<script>alert(1)</script>",
    "</style></svg><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{$ _^{",
    "evil \u202etxt.exe\u202c \u2066hidden\u2069 zero\u200bwidth",
    "bell\x07 null\x00 escape\x1b[31m lone \ud800 none \ufffe",
    "&lt;b&gt; &amp; ]]> <!-- -->",
    "Ω 数据 🙂 שלום",
)

STORABLE = [name.replace("\ud800", "") for name in HOSTILE]
"""Names for a table: Parquet is UTF-8, so it cannot contain a lone surrogate."""

VOID = {"meta", "link", "br", "img", "hr", "input"}


def selection_of(
    size: int = 400,
    targets: int = 12,
    sources: list[str] | None = None,
    columns: dict[str, list] | None = None,
    manifest: dict | None = None,
    leaked: list[int] | None = None,
    width: int = 8,
    **config,
) -> Selection:
    """A selection from random measurements; the first row has no label and the second no finite gradient."""
    generator, q = torch.Generator().manual_seed(0), min(targets, width)
    coordinates = torch.randn(size, q, generator=generator) * 3
    norms = coordinates.norm(dim=1) * (1 + torch.rand(size, generator=generator))
    label_tokens = torch.randint(1, 300, (size,), generator=generator)
    label_tokens[0], norms[1] = 0, float("nan")
    mask = None if leaked is None else torch.zeros(size, dtype=torch.bool).index_fill(0, torch.tensor(leaked), True)
    measured = Measurements(
        coordinates=coordinates,
        norms=norms,
        label_tokens=label_tokens,
        singular_values=torch.linspace(5, 1, q, dtype=torch.float64),
        target_coordinates=torch.randn(targets, q, generator=generator),
        target_label_tokens=torch.randint(1, 300, (targets,), generator=generator),
        target_columns=columns or {},
        leaked=mask,
        sources=None if sources is None else [sources[i % len(sources)] for i in range(size)],
    )
    return Selection.choose(measured, GISTConfig(**{"budget": 0.1, **config}), manifest or {})


class Page(HTMLParser):
    """What is in a page: its elements, ids, attributes and words, as a browser would parse them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if self._open.pop() != tag:
            raise ValueError(f"</{tag}> closes another element")

    def handle_data(self, data):
        if not self._open or self._open[-1] != "style":
            self.words.append(data)

    def handle_decl(self, declaration):
        if declaration != "DOCTYPE html":
            raise ValueError(f"<!{declaration}>")

    @property
    def text(self) -> str:
        """All words."""
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> list[str]:
        """The values of an attribute, in all elements that have it."""
        return [values[name] for _, values in self.elements if name in values]
