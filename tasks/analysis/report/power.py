"""How large a difference must be for a comparison to find it."""

import math

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.analysis.report.comparison import SIGNIFICANCE_LEVEL
from attention_zoo.tasks.analysis.report.significance import FLOOR_SHARE, maximum_modulus_p

DRAWS = 100_000  # for up to 40 rows; fewer for more, which would need much memory
GRID = 16  # degrees of freedom that the critical values are calculated at


def smallest_difference(
    spread: float,
    seeds: int,
    rows: int,
    power: float = 0.8,
    *,
    named_reference: bool = False,
    tuning_variance: float = 0.0,
) -> float:
    """Return the smallest true difference that a report finds with a probability.

    It is that of a row from the best row or, with `named_reference`, from a reference that was
    chosen beforehand. A difference d is found if it exceeds the critical value c of t:

        d + noise > c(f) √(max(v₁, floor) + max(v₂, floor)),  noise ~ N(0, 2s²w),
        vᵢ ~ s²w χ²/(seeds − 1) for each row

    with the spread s, w = 1/seeds + tuning_variance, and the floor and f as in `welch_test`. The
    result is the quantile at `power` of the d that random draws need. For a named reference it is
    that of Holm's first step, which is the hardest.

    Args:
        spread: the standard deviation over seeds, the same in all rows.
        seeds: how many each row has.
        rows: how many are compared.
        power: the probability to find the difference.
        named_reference: whether the correction is Holm's, not T3's for all pairs of rows.
        tuning_variance: what tuning adds to the variance of a mean, in variances over seeds.

    Raises:
        UserError: there is no test with such numbers.
    """
    if seeds < 2 or rows < 2:
        raise UserError(
            f"A test needs two seeds and two rows or more, got seeds={seeds}, rows={rows}."
        )
    if not 0 < power < 1 or not 0 <= spread < math.inf:
        raise UserError(
            f"power must be between 0 and 1, and spread a number from 0, got power={power}, "
            f"spread={spread}."
        )
    level, pairs = SIGNIFICANCE_LEVEL, math.comb(rows, 2)
    if named_reference:
        level, pairs = level / (rows - 1), 1
    generator = np.random.default_rng(0)
    weight = 1 / seeds + tuning_variance
    draws = min(DRAWS, 40 * DRAWS // rows)
    of_rows = weight * generator.chisquare(seeds - 1, (rows, draws)) / (seeds - 1)
    floors = FLOOR_SHARE * np.quantile(of_rows, 0.75, axis=0, method="inverted_cdf")
    variances = of_rows[:2]
    freedoms = (seeds - 1) * variances.sum(axis=0) ** 2 / (variances**2).sum(axis=0)
    total = np.maximum(variances, floors).sum(axis=0)
    grid = np.geomspace(seeds - 1, 2 * (seeds - 1), GRID)
    logs = [log_critical_value(level, float(freedom), pairs) for freedom in grid]
    critical = np.exp(np.interp(np.log(freedoms), np.log(grid), logs))
    noise = generator.normal(0, math.sqrt(2 * weight), draws)
    return spread * float(np.quantile(critical * np.sqrt(total) - noise, power))


def log_critical_value(level: float, freedom: float, pairs: int) -> float:
    """Return log t, for the t that the largest |t| of pairs exceeds with probability `level`."""
    low, high = -7.0, 20.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        if maximum_modulus_p(math.exp(middle), freedom, pairs) > level:
            low = middle
        else:
            high = middle
    return high


def t_quantile(freedom: int) -> float:
    """Return what |t| of Student exceeds with a probability of 5 %."""
    return math.exp(log_critical_value(SIGNIFICANCE_LEVEL, freedom, pairs=1))
