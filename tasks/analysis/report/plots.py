"""The pictures of a report, as SVG that needs nothing but the page's style sheet.

A row is drawn in one style throughout: the best have colours, dashes and shapes of their own, the
others are grey, and named by pointing at them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from attention_zoo.tasks.analysis.length_report import asked, measure, score
from attention_zoo.tasks.analysis.report.comparison import Comparison, Row
from attention_zoo.tasks.analysis.report.measures import SCALES, Measure, deviation, mean, scaled

COLOURS = 7  # rows with a style of their own
DASHES = ("", "7 3", "2 3", "9 3 2 3", "", "7 3", "2 3")
# Of a circle of radius 1: shapes that differ in outline, as paths.
SHAPES = (
    "M-.9,0A.9,.9 0 1 1 .9,0A.9,.9 0 1 1 -.9,0Z",
    "M-.8,-.8H.8V.8H-.8Z",
    "M0,-1L1,.8H-1Z",
    "M0,-1.1L1.1,0L0,1.1L-1.1,0Z",
    "M0,1L1,-.8H-1Z",
    "M-.35,-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
    "M0,-1.1L.95,-.35L.6,.9H-.6L-.95,-.35Z",
)
WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 34, 46
POINTS = 150  # of a curve
WIDE = 8.0  # costs that are so many times others need a logarithmic axis
COSTS = (
    *("tokens_per_second", "peak_memory_bytes", "parameters", "decode_state_bytes"),
    "training_flops_per_token",
)


@dataclass(frozen=True)
class Axis:
    """What a direction of a panel means."""

    title: str
    low: float
    high: float
    text: Callable[[float], str]
    logarithmic: bool = False
    ticks: Sequence[float] | None = None
    base: float = 10.0  # of round numbers: 1024 for bytes

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def marks(self) -> list[float]:
        """The values to name: steps of 1, 2 or 5, or, on a logarithmic axis, such figures."""
        if self.ticks is not None:
            return list(self.ticks)
        if self.logarithmic:
            first, last = (math.floor(math.log(x, self.base)) for x in (self.low, self.high))
            between = (1, 2, 5) if self.base == 10 else (1, 4, 16, 64, 256)
            figures = [k * self.base**n for n in range(first, last + 1) for k in between]
            return [x for x in figures if self.low <= x <= self.high]
        # Round in the unit that the figures are written in.
        unit = self.base ** math.floor(math.log(self.high, self.base)) if self.base != 10 else 1.0
        raw = (self.high - self.low) / unit / 6
        size = 10.0 ** math.floor(math.log10(raw))
        step = unit * next(k * size for k in (1, 2, 5, 10) if k * size >= raw)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


@dataclass(frozen=True)
class Panel:
    """Two axes, and what is drawn between them."""

    title: str
    x: Axis
    y: Axis

    def at(self, x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + self.x.share(x) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - self.y.share(y) * (HEIGHT - TOP - BOTTOM),
        )

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join("{:.1f},{:.1f}".format(*self.at(*point)) for point in points)

    def svg(self, drawn: Sequence[str], name: str) -> str:
        """The panel with its axes; what runs out of it is cut off."""
        inner = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}"'
        clip = f'<clipPath id="{name}"><rect {inner} height="{HEIGHT - TOP - BOTTOM}"/></clipPath>'
        axes = []
        for value in self.y.marks():
            y = self.at(self.x.low, value)[1]
            axes.append(f'<path class="grid" d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}"/>')
            text = escape(self.y.text(value))
            axes.append(f'<text class="tick end" x="{LEFT - 7}" y="{y + 4:.1f}">{text}</text>')
        for value in self.x.marks():
            x = self.at(value, self.y.low)[0]
            axes.append(f'<path class="grid" d="M{x:.1f},{TOP}V{HEIGHT - BOTTOM}"/>')
            text = escape(self.x.text(value))
            axes.append(
                f'<text class="tick middle" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}">{text}</text>'
            )
        axes.append(f'<text class="title" x="{LEFT}" y="18">{escape(self.title)}</text>')
        axes.append(
            f'<text class="axis middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">'
            f"{escape(self.x.title)}</text>"
        )
        label = escape(f"{self.title}; {self.x.title}", quote=True)
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
            f'<defs>{clip}</defs>{"".join(axes)}<g clip-path="url(#{name})">{"".join(drawn)}</g>'
            "</svg>"
        )


def style_of(place: int) -> str:
    """The class of the row at a place."""
    return f"c{place}" if place < COLOURS else "rest"


def group(place: int, tip: str, content: str) -> str:
    """Marks of a row: one thing to point at."""
    return (
        f'<g class="row {style_of(place)}" data-row="{place}" data-tip="{escape(tip, quote=True)}">'
        f"{content}</g>"
    )


def shape(place: int, x: float, y: float, size: float = 5) -> str:
    path = SHAPES[place] if place < COLOURS else SHAPES[0]
    scale = size if place < COLOURS else 0.7 * size
    return (
        f'<path class="dot" transform="translate({x:.1f},{y:.1f}) scale({scale})" d="{path}"/>'
        f'<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="11"/>'
    )


def swatch(place: int) -> str:
    """How the row at a place is drawn, for legends and tables."""
    dash = DASHES[place] if place < COLOURS else ""
    path = SHAPES[place] if place < COLOURS else SHAPES[0]
    return (
        f'<svg class="swatch row {style_of(place)}" viewBox="0 0 30 12" aria-hidden="true">'
        f'<path class="line" stroke-dasharray="{dash}" d="M1,6H29"/>'
        f'<path class="dot" transform="translate(15,6) scale(4)" d="{path}"/></svg>'
    )


def back_to_front(rows: Sequence[Row]) -> Iterator[tuple[int, Row]]:
    """The best is drawn last, above the others."""
    return reversed(list(enumerate(rows)))


def loss_panels(comparison: Comparison, name: str) -> Iterator[str]:
    """Loss by tokens, or by steps where tokens are not on record: mean and band over seeds."""
    for key, title in (("val/loss", "Validation loss"), ("train/loss", "Training loss")):
        curves = {place: curve(row, key) for place, row in enumerate(comparison.rows)}
        curves = {place: points for place, points in curves.items() if len(points) > 1}
        if not curves:
            continue
        heights = [y for points in curves.values() for _, y, _ in points]
        last = max(x for points in curves.values() for x, _, _ in points)
        first = min(x for points in curves.values() for x, _, _ in points)
        # Losses fall steeply at first: what is higher than all curves after a quarter runs out.
        later = [y for points in curves.values() for x, y, _ in points if x >= last / 4]
        low, high = margins(min(heights), max(later or heights))
        panel = Panel(
            f"{title}, nats per token",
            Axis("target tokens seen", first, last, rounded("count", first, last)),
            Axis("", low, high, decimals(low, high)),
        )
        drawn = []
        for place, row in back_to_front(comparison.rows):
            if place not in curves:
                continue
            points = curves[place]
            line = [(x, y) for x, y, _ in points]
            band = [(x, y + s) for x, y, s in points] + [(x, y - s) for x, y, s in points[::-1]]
            wide = any(s for _, _, s in points)
            path = panel.path(line)
            dash = DASHES[place] if place < COLOURS else ""
            content = (f'<path class="band" d="{panel.path(band)}Z"/>' if wide else "") + (
                f'<path class="line" stroke-dasharray="{dash}" d="{path}"/>'
                f'<path class="hit line" d="{path}"/>'
            )
            x, y, s = points[-1]
            about = f" ± {s:.4f}" if s else ""
            tip = f"{row.label}: {y:.4f}{about} after {scaled(x, 'count')} tokens"
            drawn.append(group(place, tip, content))
        yield panel.svg(drawn, f"{name}-{key.partition('/')[0]}")


def curve(row: Row, key: str) -> list[tuple[float, float, float]]:
    """Tokens, mean and deviation over seeds, at the steps that all seeds have."""
    found: dict[int, list[tuple[float, float]]] = {}
    for run in row.runs:
        for step, tokens, value in run.results.get("history", {}).get(key, ()):
            if value is not None:
                found.setdefault(step, []).append((tokens, value))
    most = max(map(len, found.values()), default=0)
    points = [
        (
            mean([x for x, _ in pairs]) or 0.0,
            mean([y for _, y in pairs]) or 0.0,
            deviation([y for _, y in pairs]) if len(pairs) > 1 else 0.0,
        )
        for _, pairs in sorted(found.items())
        if len(pairs) == most
    ]
    stride = max(1, math.ceil(len(points) / POINTS))
    # The last point is always among them.
    return points[::-1][::stride][::-1]


def cost_panels(comparison: Comparison, name: str) -> Iterator[str]:
    """Quality against each cost in which the rows differ."""
    first = comparison.primary_metric
    for cost in (x for key in COSTS for x in comparison.cost if x.key == key):
        points = {
            place: (x, y)
            for place, row in enumerate(comparison.rows)
            if (x := row.mean(cost.key)) is not None and (y := row.mean(first.key)) is not None
        }
        costs = [x for x, _ in points.values()]
        if len({*costs}) < 2:
            continue
        spreads = {place: spread(comparison.rows[place], first) for place in points}
        y_axis = quality_axis(first, points, spreads)
        logarithmic = min(costs) > 0 and max(costs) / min(costs) > WIDE
        low, high = margins(min(costs), max(costs), logarithmic=logarithmic)
        better = "right" if cost.better == "higher" else "left"
        upward = "up" if first.better == "higher" else "down"
        # Nothing costs less than nothing.
        low = max(low, 0) if min(costs) >= 0 else low
        panel = Panel(
            f"{first.title} by {cost.title}",
            Axis(
                f"{cost.title} (better: {better}, and {upward})",
                low,
                high,
                cost.text if logarithmic else rounded(cost.style, low, high),
                logarithmic,
                base=1024.0 if cost.style == "bytes" else 10.0,
            ),
            y_axis,
        )
        drawn = []
        for place, row in back_to_front(comparison.rows):
            if place not in points:
                continue
            x, y = panel.at(*points[place])
            around = spreads[place] * (HEIGHT - TOP - BOTTOM) / (y_axis.high - y_axis.low)
            tip = (
                f"{row.label}: {first.spread(row.values(first.key))} {first.title}, "
                f"{cost.text(points[place][0])} {cost.title}"
            )
            bar = f'<path class="bar" d="M{x:.1f},{y - around:.1f}V{y + around:.1f}"/>'
            drawn.append(group(place, tip, bar + shape(place, x, y)))
        drawn.extend(labels(panel, comparison.rows, points))
        yield panel.svg(drawn, f"{name}-{cost.key.replace('/', '-')}")


def spread(row: Row, measure: Measure) -> float:
    values = row.values(measure.key)
    return deviation(values) if len(values) > 1 else 0.0


def quality_axis(
    measure: Measure, points: Mapping[int, tuple[float, float]], spreads: Mapping[int, float]
) -> Axis:
    ends = [y + sign * spreads[place] for place, (_, y) in points.items() for sign in (-1, 1)]
    low, high = margins(min(ends), max(ends))
    return Axis(measure.title, low, high, decimals(low, high))


def labels(
    panel: Panel, rows: Sequence[Row], points: dict[int, tuple[float, float]]
) -> Iterator[str]:
    """Names beside the points that have a colour, where there is room for them."""
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in (panel.at(*each) for each in points.values())]
    for place in sorted(points)[:COLOURS]:
        if place >= COLOURS:
            return
        text = shortened(rows[place].label, 24)
        x, y = panel.at(*points[place])
        width = 5.7 * len(text)
        for left, top in (
            (x + 9, y - 6),
            (x - 9 - width, y - 6),
            (x - width / 2, y - 22),
            (x - width / 2, y + 10),
        ):
            box = (left, top, left + width, top + 12)
            inside = box[0] >= LEFT and box[2] <= WIDTH - RIGHT
            inside = inside and box[1] >= TOP and box[3] <= HEIGHT - BOTTOM
            if inside and not any(overlaps(box, other) for other in taken):
                taken.append(box)
                yield (
                    f'<text class="name {style_of(place)}" data-row="{place}" x="{left:.1f}" '
                    f'y="{top + 10:.1f}">{escape(text)}</text>'
                )
                break


def overlaps(box: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def length_panels(comparison: Comparison, name: str) -> Iterator[str]:
    """How well rows do at lengths that they were not trained at."""
    for metric, title in (("perplexity", "Perplexity"), ("exact_match", "Exact match")):
        curves = {place: by_length(row, metric) for place, row in enumerate(comparison.rows)}
        curves = {place: points for place, points in curves.items() if points}
        if not curves:
            continue
        lengths = sorted({x for points in curves.values() for x, _, _ in points})
        heights = [y for points in curves.values() for _, y, _ in points]
        steep = metric == "perplexity" and max(heights) > WIDE * min(heights)
        low, high = margins(min(heights), max(heights), logarithmic=steep)
        panel = Panel(
            f"{title} by length",
            Axis(
                "length in tokens",
                lengths[0] / 1.1,
                lengths[-1] * 1.1,
                lambda x: f"{x:.0f}",
                True,
                lengths,
            ),
            Axis("", low, high, decimals(low, high), steep),
        )
        drawn = [trained_line(panel, length) for length in trained_lengths(comparison.rows)]
        for place, row in back_to_front(comparison.rows):
            if place not in curves:
                continue
            path = panel.path([(x, y) for x, y, _ in curves[place]])
            dash = DASHES[place] if place < COLOURS else ""
            content = (
                f'<path class="line" stroke-dasharray="{dash}" d="{path}"/>'
                f'<path class="hit line" d="{path}"/>'
            )
            told = ", ".join(f"{y:.4g} at {x:.0f}" for x, y, _ in curves[place])
            drawn.append(group(place, f"{row.label}: {told}", content))
            for x, y, s in curves[place]:
                about = f" ± {s:.3g}" if s else ""
                tip = f"{row.label}: {y:.4g}{about} at {x:.0f} tokens"
                drawn.append(group(place, tip, shape(place, *panel.at(x, y), size=4)))
        yield panel.svg(drawn, f"{name}-{metric}")


def trained_lengths(rows: Sequence[Row]) -> set[int]:
    found = {
        run.results["lengths"]["trained_at"]
        for row in rows
        for run in row.runs
        if "lengths" in run.results
    }
    return {length for length in found if length is not None}


def trained_line(panel: Panel, length: int) -> str:
    if not panel.x.low <= length <= panel.x.high:
        return ""
    x = panel.at(length, panel.y.low)[0]
    return (
        f'<path class="trained" d="M{x:.1f},{TOP}V{HEIGHT - BOTTOM}"/>'
        f'<text class="tick" x="{x + 4:.1f}" y="{TOP + 11}">trained at {length}</text>'
    )


def by_length(row: Row, metric: str) -> list[tuple[float, float, float]]:
    """Length, mean and deviation over the seeds that were scored there."""
    scored: dict[int, list[float]] = {}
    for run in row.runs:
        if "lengths" in run.results and measure(run.results) == metric:
            for length in asked(run.results):
                value = score(run.results, metric, length)
                if value is not None and math.isfinite(value):
                    scored.setdefault(length, []).append(value)
    return [
        (length, mean(found) or 0.0, deviation(found) if len(found) > 1 else 0.0)
        for length, found in sorted(scored.items())
    ]


def strip(comparison: Comparison, place: int) -> str:
    """The seeds of a row on the scale of all rows, with their mean, and the mean of the best."""
    first = comparison.primary_metric
    everything = [x for row in comparison.rows for x in row.values(first.key)]
    low, high = margins(min(everything), max(everything))
    row = comparison.rows[place]

    def at(value: float) -> float:
        return 4 + 132 * (value - low) / (high - low)

    values = row.values(first.key)
    dots = "".join(f'<circle class="seed" cx="{at(x):.1f}" cy="10" r="3"/>' for x in values)
    middle = row.mean(first.key)
    if middle is not None:
        dots += f'<path class="mean" d="M{at(middle):.1f},3V17"/>'
    reference = comparison.reference.mean(first.key)
    line = "" if reference is None else f'<path class="grid" d="M{at(reference):.1f},0V20"/>'
    told = ", ".join(
        f"seed {run.seed}: {first.text(run.results.get(first.key))}" for run in row.runs
    )
    content = group(place, f"{row.label}: {told}", f'<path class="hit" d="M0,0H140V20H0Z"/>{dots}')
    return f'<svg class="strip" viewBox="0 0 140 20" aria-hidden="true">{line}{content}</svg>'


def margins(low: float, high: float, *, logarithmic: bool = False) -> tuple[float, float]:
    """A range with some room at its ends."""
    if logarithmic:
        room = (high / low) ** 0.08
        return low / room, high * room
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def decimals(low: float, high: float) -> Callable[[float], str]:
    """Writes numbers of a range with as many decimals as tell its ticks apart."""
    digits = max(0, -math.floor(math.log10((high - low) / 6)))
    return lambda value: f"{value:,.{digits}f}".replace("-", "−")


def rounded(style: int | str, low: float, high: float) -> Callable[[float], str]:
    """The same, in the unit of the range's high end."""
    base, units = SCALES.get(str(style), (1, ("",)))
    power = min(len(units) - 1, int(math.log(high, base))) if base > 1 and high >= 1 else 0
    number = decimals(low / base**power, high / base**power)
    return lambda value: f"{number(value / base**power)} {units[power]}".rstrip()
