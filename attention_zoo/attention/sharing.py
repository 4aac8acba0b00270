"""Keys and values that layers share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from attention_zoo.attention.qkv import QKV
from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tensor_checks import describe

if TYPE_CHECKING:
    from attention_zoo.attention.base import Attention


@dataclass
class SharedKV:
    """Keys and values that an attention hands over to those of later layers in a pass.

    Args:
        length: number of tokens before the pass, which a cache holds.
        qkv: what the attention projected, with the cached tokens; None before its turn. The
            queries are its own.
        order: of the columns of qkv, see `Unpadding`.
    """

    length: int = 0
    qkv: QKV | None = None
    order: Tensor | None = None


def cannot_share(name: str) -> Unsupported:
    """Return the refusal of a mechanism whose keys and values cannot be shared."""
    return Unsupported(
        f"{name} has no keys and values that another layer could read. Choose a relative of "
        "softmax attention, such as grouped_query, or leave share_kv out."
    )


def check_shared(shared: object, layer: int) -> None:
    """Refuse to read keys and values that no layer projected."""
    if not isinstance(shared, SharedKV) or shared.qkv is None:
        raise UserError(
            f"the attention of layer {layer} reads the keys and values of another one, which "
            f"`shared` must hold, got {describe(shared)}. Call the model, not the layer."
        )


def check_same_kv(attention: "Attention", source: "Attention", kv_modules: Sequence[str]) -> None:
    """Refuse an attention whose keys and values are not those of a source."""
    if type(attention) is not type(source):
        raise Unsupported(
            f"{attention.card.name} cannot read the keys and values of {source.card.name}, which "
            f"layer {source.layer} has: both layers must have the same mechanism."
        )
    shapes = [
        {
            f"{name}.{part}": tuple(x.shape)
            for name in kv_modules
            for part, x in module.get_submodule(name).named_parameters()
        }
        | {name: getattr(module, name) for name in ("kv_heads", "head_dim", "window")}
        for module in (attention, source)
    ]
    for name in {**shapes[0], **shapes[1]}:
        ours, theirs = (x.get(name) for x in shapes)
        if ours != theirs:
            raise Unsupported(
                f"keys and values are shared by attention of the same sizes only, got {name}="
                f"{ours}, and {theirs} in layer {source.layer}, the source."
            )
    positions = attention.position, source.position
    acts = {site for x in positions for site in x.card.acts}
    if positions[0] is not positions[1] and acts & {"heads", "width", "content"}:
        raise Unsupported(
            f"position={positions[0].card.name} acts on keys, which come from layer "
            f"{source.layer}, where the encoding is another one. Choose one that layers share, or "
            "one that acts on scores."
        )
