"""Which learning rates are tried, and what their losses say."""

import math
from collections.abc import Mapping, Sequence

# A rate is nearly as good as the best if its loss is at most this much higher, in nats.
NEARLY = 0.1
FURTHER = 2  # rates that are tried at a time after the first ones
# Each trial has one seed, so that candidates which are equal may get rates which are not equally
# good. This adds to the variance of a mean, in variances over seeds. The value was chosen a little
# above the most that simulated trials gave, 0.43, over parabolas and pointed curves of losses by
# rates, with a rate_factor of 3; benchmarks/simulated_comparisons.py checks what follows from it.
TUNING_VARIANCE = 0.5


def round_rate(rate: float) -> float:
    """Return a rate with three digits, as it is written in an override."""
    return float(f"{rate:.3g}")


def first_rates(center: float, count: int, factor: float) -> list[float]:
    """Return rates around a center, each `factor` times the one before."""
    lowest = center / factor ** ((count - 1) // 2)
    return [round_rate(lowest * factor**step) for step in range(count)]


def lowest_and_highest(
    center: float, count: int, factor: float, further: int
) -> tuple[float, float]:
    """Return the lowest and the highest rate that may be tried, further ones included."""
    below, above = (count - 1) // 2 + further, count - 1 - (count - 1) // 2 + further
    try:
        return round_rate(center / factor**below), round_rate(center * factor**above)
    except OverflowError:
        return 0.0, math.inf


def smallest_ratio(factor: float, further: int) -> float:
    """Return the smallest ratio of two rates, where every round of further ones halves a gap."""
    return factor ** (0.5 ** math.ceil(further / FURTHER))


def further_rates(
    losses: Mapping[float, float], factor: float, count: int = FURTHER
) -> list[float]:
    """Return more rates: beyond the edge that the best rate is at, else on both sides of it.

    A single one is the nearest beyond the edge, or on the side of the better neighbour.
    """
    rates = sorted(losses)
    best = best_rate(losses)
    index = rates.index(best)
    if index == 0:
        found = [best / factor ** (step + 1) for step in range(count)]
    elif index == len(rates) - 1:
        found = [best * factor ** (step + 1) for step in range(count)]
    else:
        neighbours = sorted((rates[index - 1], rates[index + 1]), key=losses.__getitem__)
        found = [math.sqrt(best * rate) for rate in neighbours[:count]]
    return sorted(map(round_rate, found))


def best_rate(losses: Mapping[float, float]) -> float:
    """Return the rate of the lowest loss; of equal losses, the lowest rate."""
    return min(sorted(losses), key=losses.__getitem__)


def is_at_edge(losses: Mapping[float, float], best: float) -> bool:
    """Return whether no lower rate, or no higher one, was tried: a better one may lie beyond."""
    return best in (min(losses), max(losses))


def good_range(losses: Mapping[float, float]) -> tuple[float, float]:
    """Return the lowest and the highest rate around the best that are nearly as good as it."""
    rates = sorted(losses)
    best = best_rate(losses)

    def reach(ordered: Sequence[float]) -> float:
        last = best
        for rate in ordered:
            if losses[rate] > losses[best] + NEARLY:
                break
            last = rate
        return last

    index = rates.index(best)
    return reach(rates[:index][::-1]), reach(rates[index + 1 :])
