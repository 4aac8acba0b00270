"""The word problem of a group: the running product of its elements."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np

from attention_zoo.errors import UserError
from attention_zoo.tasks.data.diagnostics.base import QueryRows, StringDiagnostic
from attention_zoo.tasks.data.tokenizers import BOS, FIRST_ID

MAX_ELEMENTS = 1000


@dataclass(frozen=True, kw_only=True)
class WordProblem(StringDiagnostic):
    """Draws elements of a group; each is a query for the product of all elements up to it.

    A permutation is written as what it makes of 1 2 3 …, so 213 swaps the first two. The product of
    p and q is p(q(·)), as in the authors' code. Each element from that with the number `min_length`
    on is a query. At another length only the last one is.

    Source: Merrill et al. 2024, arXiv 2404.08819; Siems et al. 2025, arXiv 2502.10297.

    Args:
        length: of the longest words, in elements.
        min_length: of the shortest words.
        group: S3, S4, … (all permutations), A4, A5, … (the even ones), Z2, Z60, … (numbers under
            addition), or a product of these, such as A4_x_Z5.
    """

    length: int = 20
    min_length: int = 2
    group: str = "A5"

    def __post_init__(self) -> None:
        super().__post_init__()
        group_table(self.group)

    @property
    def symbols(self) -> list[str]:
        return list(group_table(self.group)[0])

    @property
    def chance_accuracy(self) -> float:
        """Return 1 / the size of the group: a product of uniform elements is uniform."""
        return 1 / len(self.symbols)

    def draw_rows(self, generator: np.random.Generator, rows: int) -> QueryRows:
        table = group_table(self.group)[1]
        elements = generator.integers(len(table), size=(rows, self.length))
        products = elements.copy()
        for position in range(1, self.length):
            products[:, position] = table[products[:, position - 1], elements[:, position]]
        inputs = np.concatenate([np.full((rows, 1), BOS), FIRST_ID + elements], axis=1)
        positions = np.arange(self.min_length, self.length + 1)
        answers = FIRST_ID + products[:, self.min_length - 1 :]
        return QueryRows(inputs, np.broadcast_to(positions, answers.shape), answers)


@lru_cache
def group_table(name: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of a group's elements and its products, [n n] numbers of elements.

    Raise UserError for a group that there is not, or that has more than `MAX_ELEMENTS` elements.
    """
    names: tuple[str, ...] = ("",)
    table = np.zeros((1, 1), dtype=np.int64)
    for factor in name.split("_x_"):
        factor_names, factor_table = simple_group_table(factor, name)
        size = len(factor_names)
        if len(names) * size > MAX_ELEMENTS:
            raise UserError(f"group must have at most {MAX_ELEMENTS} elements, got {name}.")
        names = tuple(".".join(filter(None, pair)) for pair in product(names, factor_names))
        # Element (a, b) has the number a · size + b.
        pairs = table[:, None, :, None] * size + factor_table[None, :, None, :]
        table = pairs.reshape(len(names), len(names))
    return names, table


def simple_group_table(factor: str, name: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Return `group_table` of a group that is no product; `name` is that which was asked for."""
    kind, degree = factor[:1], int(factor[1:]) if factor[1:].isdecimal() else 0
    if kind == "Z" and 2 <= degree <= MAX_ELEMENTS:
        numbers = np.arange(degree)
        return tuple(map(str, numbers)), (numbers[:, None] + numbers) % degree
    if kind not in ("S", "A") or not 3 <= degree <= 6:
        raise UserError(
            "group must be S3 to S6, A3 to A6, Z2 or a larger Z, or a product of these such as "
            f"A4_x_Z5, got {name}."
        )
    elements = np.array(list(permutations(range(degree))))
    if kind == "A":
        later = np.triu(np.ones((degree, degree), dtype=bool), 1)
        inversions = ((elements[:, :, None] > elements[:, None, :]) & later).sum(axis=(1, 2))
        elements = elements[inversions % 2 == 0]
    # A number for each permutation, which grows in the order of the elements.
    weights = degree ** np.arange(degree)[::-1]
    composed = elements[:, elements]  # p(q(i)) at [p, q, i]
    table = np.searchsorted(elements @ weights, composed @ weights)
    return tuple("".join(map(str, 1 + element)) for element in elements), table
