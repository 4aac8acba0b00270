"""Tables with a row for each distance."""

from torch import Tensor


def gather_rows(products: Tensor, rows: Tensor) -> Tensor:
    """Gather, from the products [b h m r] with all rows, those with rows [b|1 m n]: [b h m n]."""
    return products.gather(-1, rows[:, None].expand(*products.shape[:3], -1))
