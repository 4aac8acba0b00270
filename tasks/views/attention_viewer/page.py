"""The attention over one or more lines as a page of one file, which asks nothing of any network."""

import base64
import json
from collections.abc import Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.tasks.views.attention_record import ROLES, AttentionRecord
from attention_zoo.tasks.views.pages import document

# The script fills it in.
BODY = """
<header><h1 id="source" dir="auto"></h1><p id="written" dir="auto"></p></header>
<main>
<form id="choices" aria-label="What is shown">
<fieldset id="several"><legend>line</legend>
<select name="line" aria-label="line"></select></fieldset>
<fieldset><legend>attention</legend><div data-name="role"></div></fieldset>
<fieldset><legend>layer</legend><div data-name="layer"></div></fieldset>
<fieldset><legend>head</legend><div data-name="head"></div></fieldset>
</form>
<p id="told" role="status"></p>
<div class="panels">
<section aria-label="Lines">
<div class="sides"><span data-title="query"></span><span data-title="key"></span></div>
<div class="scroll" id="lines">
<ol class="tokens" data-side="query"></ol>
<canvas id="threads"></canvas>
<ol class="tokens" data-side="key"></ol>
</div>
</section>
<section aria-label="Heatmap">
<div class="sides"><span data-title="query"></span><span data-title="key"></span></div>
<div class="scroll" id="heat" tabindex="0" role="group"
  aria-label="Heatmap: the arrow keys move from cell to cell">
<div id="grid">
<ol class="across" data-side="key"></ol><ol class="down" data-side="query"></ol>
<div id="cells"><canvas></canvas><div id="mark" hidden></div></div>
</div>
</div>
</section>
</div>
<p id="scale">
<span></span><i class="minus"></i><span></span><i class="plus"></i><span></span>
<span class="soft" id="sums"></span>
</p>
<h2>All layers and heads</h2>
<div class="scroll" tabindex="0" role="region" aria-label="All layers and heads">
<table id="overview"></table>
</div>
</main>
"""
STEPS = torch.iinfo(torch.int16).max


def page(readings: Sequence[AttentionRecord]) -> str:
    """A document with a line view, a heatmap and an overview of every layer, role and head.

    A weight takes 8/3 bytes: it is rounded to a multiple of the greatest of its layer / 32767.

    Args:
        readings: at least one; the page lets choose between several.

    Raises:
        ValueError: a map does not fit its tokens. UserError: a weight is not finite.
    """
    told = json.dumps(
        [described(reading) for reading in readings], ensure_ascii=False, separators=(",", ":")
    )
    # "</script>" in a token must not end the element.
    data = told.replace("<", "\\u003c")
    return document(
        readings[0].source or "Attention",
        f'{BODY}<script type="application/json" id="readings">{data}</script>',
        of="views/attention_viewer",
    )


class AttentionView(AttentionRecord):
    """A record that shows itself in a notebook."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return framed(self)


def framed(reading: AttentionRecord) -> str:
    """The page as a part of another, such as a notebook, which it shares no name with."""
    return (
        '<iframe title="Attention" style="width: 100%; height: 720px; border: 0" '
        f'srcdoc="{escape(page([reading]))}"></iframe>'
    )


def described(reading: AttentionRecord) -> dict[str, Any]:
    """A reading in plain containers."""
    return {
        "source": reading.source,
        "written": reading.target,
        "roles": [described_role(reading, role) for role in ROLES if role in reading.maps],
    }


def described_role(reading: AttentionRecord, role: str) -> dict[str, Any]:
    title, *sides = ROLES[role]
    # Of a language model, or of an encoder.
    alone = len(reading.maps) == 1 and role != "cross"
    queries, keys = reading.tokens(role)
    layers = [reading.weights(role, layer) for layer in range(len(reading.maps[role]))]
    for layer, weights in enumerate(layers):
        if not weights.isfinite().all():
            raise UserError(
                f"attention must be finite to be shown, but layer {layer + 1} of the {role} gives "
                "weights that are not: has the training diverged?"
            )
    return {
        "name": role,
        "title": "Self-attention" if alone else title,
        "sides": ["text", "text"] if alone else sides,
        "queries": queries,
        "keys": keys,
        "layers": [packed(weights) for weights in layers],
    }


def packed(weights: Tensor) -> dict[str, Any]:
    """Weights [h q k] as whole numbers of steps, 16 bits each, little end first, in base 64."""
    step = weights.abs().max().item() / STEPS or 1.0
    numbers = (weights.double() / step).round().numpy().astype("<i2")
    return {
        "heads": len(weights),
        "step": step,
        "weights": base64.b64encode(numbers.tobytes()).decode("ascii"),
    }
