"""The attention over one or more lines as a page of one file, which needs no network."""

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.tasks.views.attention_record import ROLES, AttentionRecord
from attention_zoo.tasks.views.pages import render_page


def attention_page(records: Sequence[AttentionRecord]) -> str:
    """Return a page with a line view, a heatmap and an overview of every layer, role and head.

    Readers choose between several records. A weight takes 8/3 bytes: it is rounded to a multiple of
    the largest of its layer / 32767.

    Raises:
        ValueError: a map does not fit its tokens.
        UserError: a weight is not finite.
    """
    encoded = []
    for record in records:
        roles = [encode_role(record, role) for role in ROLES if role in record.maps]
        encoded.append({"source": record.source, "target": record.target, "roles": roles})
    title = records[0].source or "Attention"
    return render_page("views/attention_viewer/page.html", title=title, records=encoded)


def notebook_frame(record: AttentionRecord) -> str:
    """Return the page in a frame, for a notebook."""
    return render_page("views/attention_viewer/frame.html", page=attention_page([record]))


class AttentionView(AttentionRecord):
    """A record that shows itself in a notebook."""

    __slots__ = ()
    _repr_html_ = notebook_frame


def encode_role(record: AttentionRecord, role: str) -> dict[str, Any]:
    """Return the tokens and the weights of a role as the script of the page reads them."""
    title, *sides = ROLES[role]
    if len(record.maps) == 1 and role != "cross":  # a language model, or an encoder
        title, sides = "Self-attention", ["text", "text"]
    queries, keys = record.tokens(role)
    layers = []
    for layer in range(len(record.maps[role])):
        weights = record.weights(role, layer)
        if not weights.isfinite().all():
            raise UserError(
                f"attention must be finite to be shown, but layer {layer} of the {role} gives "
                "weights that are not: has the training diverged?"
            )
        layers.append(encode_weights(weights))
    names = {"name": role, "title": title, "sides": sides}
    return names | {"queries": queries, "keys": keys, "layers": layers}


def encode_weights(weights: Tensor) -> dict[str, Any]:
    """Return weights [h q k] as whole numbers of steps: 16 bits, little-endian, in base64."""
    step = weights.abs().max().item() / torch.iinfo(torch.int16).max or 1.0
    numbers = (weights.double() / step).round().numpy().astype("<i2")
    code = base64.b64encode(numbers.tobytes()).decode("ascii")
    return {"heads": len(weights), "step": step, "weights": code}
