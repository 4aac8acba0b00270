"""Say on standard error what a model cannot read in the lines of a command."""

import sys
from collections import Counter
from collections.abc import Iterator

from attention_zoo.tasks.training.task import Task


def check_lines(lines: Iterator[str], task: Task) -> Iterator[str]:
    """Yield the lines; warn of the first one of each trouble, and of their number at the end."""
    counts: Counter[str] = Counter()
    for number, line in enumerate(lines, start=1):
        for trouble, description in task.describe_troubles(line).items():
            counts[trouble] += 1
            if counts[trouble] == 1:
                print(f"warning: line {number} {description}", file=sys.stderr, flush=True)
        yield line
    for trouble, count in counts.items():
        if count > 1:
            print(f"warning: {count:,} of {number:,} lines {trouble}", file=sys.stderr)
