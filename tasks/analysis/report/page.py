"""`report.html`: one file, which asks nothing of any network."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from html import escape

from attention_zoo.tasks.analysis.report.answer import answer, counted, how_tested
from attention_zoo.tasks.analysis.report.comparison import Comparison, heading
from attention_zoo.tasks.analysis.report.conditions import conditions
from attention_zoo.tasks.analysis.report.measures import Measure
from attention_zoo.tasks.analysis.report.plots import (
    cost_panels,
    length_panels,
    loss_panels,
    strip,
    swatch,
)
from attention_zoo.tasks.analysis.report.runs import Run, run_names
from attention_zoo.tasks.analysis.report.significance import Difference
from attention_zoo.tasks.views.pages import document

STATES = {True: ("equal", "equal"), False: ("unequal", "≠ not equal"), None: ("soft", "? unknown")}


def page(title: str, comparisons: Sequence[Comparison], runs: Sequence[Run]) -> str:
    """The whole document."""
    several = len(comparisons) > 1
    body = "".join(
        section(comparison, f"s{number}", heading=several)
        for number, comparison in enumerate(comparisons)
    )
    named = list(zip(runs, run_names(runs), strict=True))
    lost = [(run, name) for run, name in named if run.outcome != "trained"]
    told = jobs_table(lost) if lost else "<p>There are none: all were trained.</p>"
    return document(
        title,
        f"<header><h1>{escape(title)}</h1><p class='soft'>{escape(counted(runs))}. "
        f"Made {datetime.now():%Y-%m-%d %H:%M} by attention-zoo report.</p></header>"
        f"<main>{body}<h2>Jobs without a result</h2>{told}"
        f"<details><summary>All {len(runs)} jobs</summary>{jobs_table(named)}</details></main>",
        of="analysis/report",
    )


def section(comparison: Comparison, name: str, *, heading: bool) -> str:
    """Answer, table, conditions and pictures of a comparison."""
    head = f"<h2>{escape(comparison.title)}</h2>" if heading else ""
    sentences = "".join(f"<p>{prose(sentence)}</p>" for sentence in answer(comparison))
    return (
        f'<section class="comparison" id="{name}">{head}<div class="answer">{sentences}</div>'
        f"<h3>Quality and cost</h3>{main_table(comparison)}{tests(comparison)}"
        f"<h3>Conditions</h3>{conditions_table(comparison)}{plots(comparison, name)}</section>"
    )


def prose(sentence: str) -> str:
    """A sentence with its labels in bold."""
    return re.sub(r"`([^`]*)`", r"<b>\1</b>", escape(sentence))


def main_table(comparison: Comparison) -> str:
    """A row a line; clicking on a head sorts by it."""
    first, *others = comparison.quality
    heads = [
        heading(comparison),
        "seeds",
        first.title,
        "spread over seeds",
        "against the reference",
    ]
    measures: list[Measure] = [*others, *comparison.cost]
    heads += [measure.title for measure in measures]
    left = (0, 4)
    top = "".join(
        f"<th scope='col'{' class=text' if place in left else ''}>"
        + (f"<button type='button'>{escape(head)}</button>" if place != 3 else escape(head))
        + "</th>"
        for place, head in enumerate(heads)
    )
    lines = []
    for place, row in enumerate(comparison.rows):
        note = f"<span class='note'>{len(row.lost)} without a result</span>" if row.lost else ""
        cells = [
            f"<th scope='row' data-row='{place}'>{swatch(place)}{breakable(row.label)}{note}</th>",
            figure_cell(len(row.runs), str(len(row.runs))),
            quality_cell(comparison, place, first, "first"),
            f"<td>{strip(comparison, place)}</td>",
            difference_cell(first, verdict(comparison, place, first)),
            *(quality_cell(comparison, place, measure, "") for measure in measures),
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return scroll(
        f"<table class='sortable'><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>"
        "</table>",
        "Quality and cost",
    )


def breakable(label: str) -> str:
    """A label that may go on in another line between its words."""
    return re.sub(r"([=_.])", r"\1<wbr>", escape(label))


def scroll(table: str, label: str) -> str:
    # To be reached by keyboard, since it may have to be scrolled.
    return f"<div class='scroll' role='region' tabindex='0' aria-label='{label}'>{table}</div>"


def figure_cell(value: float | None, text: str, style: str = "") -> str:
    return (
        f"<td data-value='{'' if value is None else repr(value)}' class='{style}'>"
        f"{escape(text)}</td>"
    )


def quality_cell(comparison: Comparison, place: int, measure: Measure, style: str) -> str:
    row = comparison.rows[place]
    values = row.values(measure.key)
    text = measure.spread(values)
    if 0 < len(values) < len(row.runs):
        text += f" ({len(values)} of {len(row.runs)} seeds)"
    if not values and any(measure.key in run.results.get("not_finite", {}) for run in row.runs):
        text = "not finite"
    return figure_cell(row.mean(measure.key), text, style)


def verdict(comparison: Comparison, place: int, measure: Measure) -> Difference | None:
    found = comparison.differences.get(measure.key)
    return found[place] if found else None


def difference_cell(measure: Measure, found: Difference | None) -> str:
    """Signed difference and its test; what is not significant is grey."""
    if found is None:
        return "<td class='text soft' data-value='0'>reference</td>"
    if found.amount is None:
        return f"<td class='text ns' data-value=''>{escape(found.lacking)}</td>"
    style = "ns"
    if found.significant:
        style = "up" if (found.amount > 0) == (measure.better == "higher") else "down"
    return (
        f"<td class='text {style}' data-value='{found.amount!r}'>"
        f"{escape(signed(measure, found.amount))} ({escape(found.told)})</td>"
    )


def signed(measure: Measure, amount: float) -> str:
    return f"{'+' if amount > 0 else ''}{measure.text(amount)}"


def tests(comparison: Comparison) -> str:
    """The differences in all measures, and how they were tested."""
    if len(comparison.rows) < 2:
        return ""
    measures = [x for x in comparison.quality if x.key in comparison.differences]
    top = "".join(f"<th class='text' scope='col'>{escape(x.title)}</th>" for x in measures)
    lines = [
        f"<tr><th scope='row' data-row='{place}'>{breakable(row.label)}</th>"
        + "".join(difference_cell(x, verdict(comparison, place, x)) for x in measures)
        + "</tr>"
        for place, row in enumerate(comparison.rows)
        if row is not comparison.reference
    ]
    table = scroll(
        f"<table><thead><tr><th scope='col'>{escape(heading(comparison))}</th>{top}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>",
        "Differences",
    )
    how = "".join(f"<p class='soft'>{prose(x)}</p>" for x in how_tested(comparison))
    return f"<h3>Differences from {escape(comparison.reference.label)}</h3>{table}{how}"


def conditions_table(comparison: Comparison) -> str:
    lines = []
    for condition in conditions(comparison):
        style, word = STATES[condition.equal]
        lines.append(
            f"<tr><th scope='row'>{escape(condition.name)}</th>"
            f"<td class='text'><span class='state {style}'>{word}</span></td>"
            f"<td class='prose'>{prose(condition.text)}</td></tr>"
        )
    return scroll(f"<table><tbody>{''.join(lines)}</tbody></table>", "Conditions")


def plots(comparison: Comparison, name: str) -> str:
    """The pictures, under a legend that picks a row out of all of them."""
    if not (drawn := list(panels(comparison, name))):
        return ""
    keys = "".join(
        f"<li><button type='button' aria-pressed='false' data-row='{place}'>"
        f"{swatch(place)}{escape(row.label)}</button></li>"
        for place, row in enumerate(comparison.rows)
    )
    figures = "".join(f"<figure>{svg}</figure>" for _, svg in drawn)
    return (
        "<h3>Pictures</h3><p class='soft'>Bands and bars are one standard deviation over seeds. "
        "Point at a curve or a dot for its figures; press a name to pick it out.</p>"
        f"<ul class='legend'>{keys}</ul><div class='plots'>{figures}</div>"
    )


def panels(comparison: Comparison, name: str) -> Iterator[tuple[str, str]]:
    """Every picture, by what it shows."""
    for kind, drawn in (
        ("loss", loss_panels(comparison, name)),
        ("cost", cost_panels(comparison, name)),
        ("lengths", length_panels(comparison, name)),
    ):
        for svg in drawn:
            yield kind, svg


def jobs_table(jobs: Sequence[tuple[Run, str]]) -> str:
    """Jobs as they ended, with their reasons."""
    lines = "".join(
        f"<tr><th scope='row'>{escape(name)}</th>"
        f"<td class='text'><span class='state'>{escape(run.outcome)}</span></td>"
        f"<td class='prose'>{escape(run.short_reason) or '–'}</td>"
        f"{figure_cell(run.seconds, '–' if run.seconds is None else f'{run.seconds:,.0f}')}"
        f"<td class='text'>{escape(str(run.folder))}</td></tr>"
        for run, name in jobs
    )
    heads = "".join(
        f"<th class='{style}' scope='col'><button type='button'>{head}</button></th>"
        for head, style in (
            ("job", "text"),
            ("outcome", "text"),
            ("reason", "text"),
            ("seconds", ""),
            ("folder", "text"),
        )
    )
    return scroll(
        f"<table class='sortable'><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>",
        "Jobs",
    )
