"""The report as one HTML page that needs nothing beside itself."""

from __future__ import annotations

from html import escape
from typing import Any

from training.tokenizer.report import plots
from training.tokenizer.report.figures import Figures
from training.tokenizer.report.rows import rows
from training.tokenizer.report.tree import Node

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222;
       max-width: 1120px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em }
h2 { font-size: 1.2em; margin-top: 2.2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; width: 100% }
tr { border-bottom: 1px solid #eee }
td, th { text-align: left; vertical-align: top; padding: .3em .9em .3em 0 }
td.name, td.figure { white-space: nowrap; font-variant-numeric: tabular-nums }
td.paper { min-width: 15em }
td.paper, .note { color: #666 }
img { width: 100%; height: auto }
code { background: #f4f4f4; padding: 0 .2em }
details { margin: .4em 0 .4em 1.2em }
summary { cursor: pointer }
ul { margin: .2em 0 .6em }
"""


def render(figures: Figures, *, provenance: str) -> str:
    """HTML of the page.

    Args:
        figures: what it shows.
        provenance: of the data; it goes where the figures go.
    """
    parts = [
        f"<h1>Tokenizer {escape(figures.tokenizer_id)}</h1>",
        f"<p>{figures.quality.ads:,} ads, {figures.quality.distinct_sids:,} semantic IDs. "
        f"{_settings(figures.settings)}</p>",
        _table(figures),
        "<p class='note'>The papers' figures are of other data and come without formulas (GR4AD, arXiv "
        "2602.22732; GPR): they say in which order methods come, not where a figure here "
        "should be. Definitions are ours.</p>",
    ]
    if figures.recall is not None:
        parts += _section(
            "Do ads that are bought together lie together?",
            "Recall of the 1, 5 and 10 nearest texts, by stage and by what learning knew of a text. Naming "
            "best-sellers is the floor of the measure. What the codes keep is asked of the sums of their "
            "centroids, where many texts lie in one place; texts that were kept out cannot be asked there, "
            "since the codebooks saw them.",
            plots.recall_bars(figures.recall),
        )
    parts += _section(
        "Do ads that differ have different SIDs?",
        "Left: collision beside its floor and the paper's two methods. Right: what the content levels leave "
        "of the vectors; the hash level tells apart what they do not.",
        plots.collision_bars(figures),
    )
    parts += _section(
        "Is every code used?",
        "Codes of each level from the fullest to the emptiest. A level is even when the blue area follows "
        "the line. One text on many ads sets a limit: its ads share all codes but the hash.",
        plots.level_curves(figures),
    )
    if figures.tree:
        parts += _section(
            "The tree of prefixes",
            f"{len(figures.tree)} codes of the first level, from the fullest on the left to the emptiest on "
            "the right, and below each its largest children. Widths are numbers of ads; words are those that "
            "set a cluster apart from all ads.",
            plots.icicle(figures.tree),
        )
        parts += ["<h2>What lies in a code</h2>", "<p>The same codes with their most frequent texts.</p>"]
        parts += [_cluster(node, is_open=True) for node in figures.tree]
    if figures.map is not None:
        parts += _section(
            "A map of the ads",
            f"{len(figures.map.places):,} distinct texts by their vectors (t-SNE). What lies close is close; "
            "distances between far regions say nothing. Colours are regions, named by their words.",
            plots.ad_map(figures.map),
        )
    parts += ["<h2>Stability</h2>", _stability(figures)]
    if provenance:
        parts += ["<h2>Data</h2>", f"<p class='note'>{escape(provenance)}</p>"]
    title = f"Tokenizer {escape(figures.tokenizer_id)}"
    head = f"<meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _settings(settings: dict[str, Any]) -> str:
    shown = ", ".join(
        f"<code>{escape(key)}: {escape(str(value))}</code>"
        for key, value in settings.items()
        if not isinstance(value, dict)
    )
    return f"Settings: {shown}."


def _table(figures: Figures) -> str:
    body = "".join(
        f"<tr><td class='name'>{escape(row.name)}</td><td class='figure'>{escape(row.value)}</td>"
        f"<td class='paper'>{escape(row.paper)}</td><td>{escape(row.definition)}</td></tr>"
        for row in rows(figures)
    )
    return f"<table><tr><th>figure</th><th>here</th><th>papers</th><th>definition</th></tr>{body}</table>"


def _section(title: str, text: str, image: str) -> list[str]:
    return [
        f"<h2>{escape(title)}</h2>",
        f"<p>{escape(text)}</p>",
        f"<img alt='{escape(title)}' src='{image}'>",
    ]


def _cluster(node: Node, *, is_open: bool) -> str:
    texts = "".join(
        f"<li>{escape(text)} <span class='note'>x {ads:,}</span></li>" for text, ads in node.texts
    )
    below = "".join(_cluster(child, is_open=False) for child in node.children)
    name = "-".join(map(str, node.codes))
    return (
        f"<details{' open' if is_open else ''}><summary><b>{name}</b> {escape(', '.join(node.words))} "
        f"<span class='note'>{node.ads:,} ads</span></summary><ul>{texts}</ul>{below}</details>"
    )


def _stability(figures: Figures) -> str:
    said = []
    if figures.fit is not None:
        fit = figures.fit
        said.append(
            f"Fitted on {fit.spread.ads:,} ads in {fit.fit_seconds:.0f} s with {fit.fit_peak_gb:.1f} GB at "
            f"most; encodes {fit.encode_ads_per_s:,.0f} ads a second."
        )
    if figures.drift is not None:
        said.append(f"Drift of the {figures.drift['new']['ads']:,} ads since: {figures.drift['why']}.")
    if figures.alignment is not None:
        kept = ", ".join(f"{share:.1%}" for share in figures.alignment.agreement)
        said.append(
            f"Aligned to {figures.alignment.aligned_to}: ads whose codes go on, up to each level: {kept}."
        )
    said.append("A published SID never moves within a tokenizer.")
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in said)
