"""No positional encoding (Haviv et al. 2022, Kazemnejad et al. 2023)."""

from attention_zoo.position.base import PositionalEncoding
from attention_zoo.zoo import POSITION


@POSITION.register(
    name="none",
    also_called=("nope",),
    paper="Haviv et al. 2022, arXiv 2203.16634; Kazemnejad et al. 2023, arXiv 2305.19466",
    equation="x",
    reference="closed form",
    deviations="causal attention can count its keys; global attention becomes a bag of words",
)
class NoEncoding(PositionalEncoding):
    """Tokens carry no position. A causal model can still learn order from what is masked."""
