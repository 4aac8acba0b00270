"""How often `attention-zoo compare` is wrong, and what it finds, in simulated comparisons.

python -m benchmarks.simulated_comparisons [--comparisons 1000] [--output FILE] [--parts FOLDER]

`benchmarks/simulated_training.py` has what is simulated.
"""

import argparse
import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from attention_zoo.tasks.comparison.noise import nearest_noise
from attention_zoo.tasks.views.tables import Table, markdown_table
from benchmarks.simulated_training import CENTER, DATA, DIM, STEPS, Curve, SimulatedComparison

ROWS_AND_SEEDS = ((2, 3), (2, 5), (2, 10), (5, 3), (5, 5), (20, 3), (20, 5))
FEW_ROWS = ((2, 3), (2, 5), (2, 10), (5, 5))  # for other curves

INTRODUCTION = """# Simulated comparisons

How often `attention-zoo compare` is wrong, and what it finds: {comparisons} simulated comparisons
for each chance of an error, half as many for each power. This command makes the page:
`python -m benchmarks.simulated_comparisons --comparisons {comparisons} --output
benchmarks/simulated_comparisons.md`

The rates, the shortlist, the confirming runs, the plan and the tests are those of the command, with
`option_trials=0`. Only the training is a formula:

    loss = lowest + curvature · ln(rate / best rate)² + noise

The noise is normal, with the spread over seeds that was measured on `data={data}`, {spread} nats.
It is drawn anew for each training. Above ten times the best rate, training diverges. For each
comparison, the best rate is drawn within a factor of 3 of the middle of the rates that are tried,
and the curvature between 0.5 and 50 spreads.

## Errors and power

- *Same model*: all candidates have the same curve. The chance that any row is called different from
  the best one is to be 0.05 at most.
- *Reference*: the same, if `reference` names the first candidate.
- *Hardest curve*: as *same model*, with a curve on which luck decides most between neighbouring
  rates: a curvature of {hardest:g} spreads, and a best rate that is among those tried.
- *Seeds alone*: what the hardest curve would give if the tests did not add the variance of tuning.
- *Announced*: the difference, in nats, that the plan promises to show with a probability of 0.8.
- *Power*: how often a certain candidate is found to be worse, if the first is the best and all
  others are worse by the announced difference. Each has a curve of its own.

"""
LAUNCHES = """
## Two launches

The candidates are launched twice, with other seeds. Their lowest losses are drawn with half the
announced difference as standard deviation, and each has a curve of its own. *Found* counts the
differences from the best row that the first launches call significant. *Confirmed* is the share of
them that the second launch calls significant with the same sign, *reversed* the share with the
other sign. *Wrong sign* is the share whose sign is not that of the true difference. The second
launch tests differences from its own best row only, which may be another one.

"""
OTHER_CURVES = """
## Other curves and noise

As *hardest curve*, for other curves of losses by rates and other noise, each with a curvature and a
best rate of which errors were most frequent. Half of the variance over seeds, which the tests add
for tuning, was not chosen on these. Columns are candidates x seeds.

- *Quartic*: ln(rate / best rate)⁴. *Pointed*: its absolute value. *Cliff*: the loss rises 27 times
  as fast above the best rate as below. *Steps*: it is flat within a factor of 1.35 of the best
  rate, and rises by one step there and by another at a factor of 2.7.
- *Heavy tails*: Student's t with 3 degrees of freedom, of the same variance. *Growing*: the spread
  doubles with each factor of 3 away from the best rate.

"""
TASKS = """
## Seeds that solve a task or do not

The exact match of diagnostics can be near 0 or near 1, as some seeds solve the task. Here, each
training of any candidate solves it with a probability of 0.5, 0.2 or 0.8. *No floor* is what 0.5
would give if the variance over seeds had no floor: seeds that agree by luck were taken for certain.

"""
HARDEST = 7.0  # curvature, in spreads over seeds
# Shape, noise, curvature in spreads, and best rate, as a power of 3 from the middle.
CURVES = (
    *(("quartic", "normal", 25, 1.0), ("pointed", "normal", 4, 0.0)),
    *(("cliff", "normal", 25, 0.5), ("steps", "normal", 2, 0.5)),
    *(("parabola", "heavy tails", 7, 0.0), ("pointed", "heavy tails", 4, 1.0)),
    *(("parabola", "growing", 12, 0.5), ("pointed", "growing", 5, 0.5)),
    ("steps", "growing", 5, 0.5),
)
CHANCES = (0.5, 0.2, 0.8)  # of a training to solve its task


def false_alarms(
    simulated: SimulatedComparison, generator: np.random.Generator, count: int
) -> list[float]:
    """Return how often any row is called different, of candidates that are the same model.

    The values are for random curves, for a named reference, and for the hardest curve with and
    without the variance of tuning. Then come those of tasks that are solved with each chance, and
    of the first of them without a floor of the variance.
    """
    alarms, rows = np.zeros(5 + len(CHANCES)), len(simulated.names)
    hardest = Curve(3.0, 3 * CENTER, HARDEST * simulated.spread)
    for _ in range(count):
        same = simulated.run([simulated.random_curve(generator)] * rows, generator)
        hard = simulated.run([hardest] * rows, generator)
        found: list[Any] = [same.differences(), same.differences(simulated.names[0])]
        found += [hard.differences(), hard.differences_of_seeds()]
        for chance in CHANCES:
            same.draw_exact_match(chance, generator)
            found.append(same.differences())
        same.draw_exact_match(CHANCES[0], generator)
        found.append(same.is_any_different_without_floor())
        alarms += [bool(x) for x in found]
    return list(alarms / count)


def false_alarms_of_curves(
    simulated: SimulatedComparison, generator: np.random.Generator, count: int
) -> list[float]:
    """Return how often any row is called different on each of the other curves."""
    shares = []
    for shape, noise, curvature, power_of_3 in CURVES:
        rate = CENTER * 3**power_of_3
        curve = Curve(3.0, rate, curvature * simulated.spread, shape, noise)
        launches = (simulated.run([curve] * len(simulated.names), generator) for _ in range(count))
        shares.append(sum(bool(x.differences()) for x in launches) / count)
    return shares


def power(simulated: SimulatedComparison, generator: np.random.Generator, count: int) -> float:
    """Return how often a candidate is found that is worse by the announced difference."""
    best, worse = simulated.names[:2]
    lowest = [3.0] + [3.0 + simulated.announced] * (len(simulated.names) - 1)
    found = 0
    for _ in range(count):
        curves = [simulated.random_curve(generator, x) for x in lowest]
        found += (best, worse) in simulated.run(curves, generator).differences()
    return found / count


def repeat_launches(
    simulated: SimulatedComparison, generator: np.random.Generator, count: int
) -> list[int]:
    """Return how many differences first launches find, and how many of them are confirmed.

    Then come how many are reversed by second launches, and how many have the wrong sign.
    """
    totals = np.zeros(4, int)
    for _ in range(count):
        lowest = generator.normal(3.0, simulated.announced / 2, len(simulated.names))
        curves = [simulated.random_curve(generator, x) for x in lowest]
        first, second = (simulated.run(curves, generator).differences() for _ in range(2))
        truth = dict(zip(simulated.names, lowest, strict=True))
        reversed_pairs = {(worse, better) for better, worse in second}
        mistaken = [x for x in first if truth[x[0]] > truth[x[1]]]
        totals += [len(first), len(first & second), len(first & reversed_pairs), len(mistaken)]
    return totals.tolist()


def simulate(setting: tuple[int, int], count: int) -> dict[str, list[str]]:
    """Return the line of each table for numbers of candidates and of seeds."""
    simulated, generator = SimulatedComparison(*setting), np.random.default_rng(setting)
    head = [str(x) for x in setting]
    alarms = [f"{x:.3f}" for x in false_alarms(simulated, generator, count)]
    share = power(simulated, generator, count // 2)
    found, *others = repeat_launches(simulated, generator, count // 4)
    lines = {
        "errors": [*head, *alarms[:4], f"{simulated.announced:.4f}", f"{share:.2f}"],
        "launches": [*head, str(found), *(f"{x / max(1, found):.3f}" for x in others)],
        "tasks": [*head, *alarms[4:]],
    }
    if setting in FEW_ROWS:
        shares = false_alarms_of_curves(simulated, generator, count)
        lines["curves"] = [f"{x:.3f}" for x in shares]
    return lines


def load_or_simulate(
    setting: tuple[int, int], count: int, parts: Path | None
) -> dict[str, list[str]]:
    """Return the lines of a setting, from the folder of parts where they are; else add them."""
    if parts is None:
        return simulate(setting, count)
    file = parts / f"{count}-{setting[0]}x{setting[1]}.json"
    if not file.exists():
        lines = simulate(setting, count)
        parts.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(lines))
    return json.loads(file.read_text())


def make_page(count: int, lines: Mapping[tuple[int, int], Mapping[str, list[str]]]) -> str:
    """Return the page; `lines` are those of each setting."""
    noise = nearest_noise(DATA, dim=DIM, steps=STEPS)
    assert noise is not None
    columns = {
        "errors": ["same model", "reference", "hardest curve", "seeds alone", "announced", "power"],
        "launches": ["found", "confirmed", "reversed", "wrong sign"],
        "tasks": [*(f"solves {x:g}" for x in CHANCES), "no floor"],
    }
    tables = {
        name: Table("", ["candidates", "seeds", *titles], [x[name] for x in lines.values()])
        for name, titles in columns.items()
    }
    shares = zip(*(x["curves"] for x in lines.values() if "curves" in x), strict=True)
    rows = [
        [shape, noise_name, f"{curvature} spreads", *each]
        for (shape, noise_name, curvature, _), each in zip(CURVES, shares, strict=True)
    ]
    settings = ["{} x {}".format(*x) for x in FEW_ROWS]
    tables["curves"] = Table("", ["curve", "noise", "curvature", *settings], rows)
    texts = {
        "errors": INTRODUCTION.format(
            comparisons=count, data=DATA, spread=noise.spread, hardest=HARDEST
        ),
        "launches": LAUNCHES,
        "curves": OTHER_CURVES,
        "tasks": TASKS,
    }
    return "".join(f"{text}{markdown_table(tables[name])}\n" for name, text in texts.items())


def main() -> None:
    """Simulate the comparisons, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--output", type=Path, help="write the page to this file")
    parser.add_argument("--parts", type=Path, help="keep results here, and go on from them")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    count, parts = arguments.comparisons, arguments.parts
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        # The longest come first.
        tasks = {x: pool.submit(load_or_simulate, x, count, parts) for x in ROWS_AND_SEEDS[::-1]}
        for _ in track(as_completed(tasks.values()), "simulating", total=len(tasks)):
            pass
        page = make_page(count, {x: tasks[x].result() for x in ROWS_AND_SEEDS})
    if arguments.output is None:
        print(page)
    else:
        arguments.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
