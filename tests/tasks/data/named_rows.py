"""The sequences of a diagnostic as symbols, for tests that restate its definition."""

from attention_zoo.tasks.data.diagnostics.base import Diagnostic

Row = tuple[list[str], dict[int, str]]


def named_rows(source: Diagnostic, split: str = "train") -> list[Row]:
    """Return each sequence as symbols, and the answers by their positions."""
    names = ["<pad>", "<bos>", "<eos>", "<unk>", *source.symbols]
    return [
        (
            [names[token] for token in inputs],
            {
                int(position): names[answer]
                for position, answer in zip(positions, answers, strict=True)
                if answer >= 0
            },
        )
        for inputs, positions, answers in zip(*source.draw_split(split), strict=True)
    ]
