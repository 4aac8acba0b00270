"""Measure how much results differ between seeds alone, for the plans of `attention-zoo compare`.

    python benchmarks/noise.py FOLDER …

reads the runs of sweeps and comparisons with three seeds or more, and adds their spreads to
tasks/comparison/noise.yaml, in place of those of the same data, width and steps.
"""

import sys
from dataclasses import asdict
from pathlib import Path

import yaml

from attention_zoo.tasks.analysis.report.runs import find_runs
from attention_zoo.tasks.comparison.noise import Noise, measure_noise, read_noise

TABLE = Path(__file__).parents[1] / "tasks/comparison/noise.yaml"
HEADER = "# Standard deviations over seeds, measured: python benchmarks/noise.py FOLDER …\n"


def main() -> None:
    """Write the table."""
    measured = measure_noise(find_runs([Path(x) for x in sys.argv[1:]]))

    def key(noise: Noise) -> tuple[str, str, int, int]:
        return noise.data, noise.metric, noise.dim, noise.steps

    entries = {key(x): x for x in (*read_noise(), *measured)}
    lines = [asdict(entries[x]) for x in sorted(entries)]
    text = yaml.safe_dump(lines, sort_keys=False, default_flow_style=None, width=100)
    TABLE.write_text(HEADER + text, encoding="utf-8")
    for noise in measured:
        print(f"{noise.data}, {noise.metric}: {noise.spread} over {noise.seeds} seeds")


if __name__ == "__main__":
    main()
