"""Equal conditions: a model resized until it is as large, or as costly, as a baseline.

`match=parameters` and `match=flops` choose the width of the feed-forward so that the model's
parameters, or its training FLOPs per target token, agree with those of the same config with
another attention in all roles and another encoding.
"""

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.analysis.costs import training_flops_per_token
from attention_zoo.tasks.configuration.build import (
    ROLE_NODES,
    build_model,
    check,
    parameter_counts,
    resolve_position,
)
from attention_zoo.tasks.configuration.entry_configs import entry_config
from attention_zoo.tasks.data.base import PreparedData
from attention_zoo.tasks.training.results import MATCHED_WITHIN

# The feed-forward is not made narrower than this share of the model's width.
LEAST = 1 / 4
# Widths that GPUs multiply fast, taken where one is near enough.
ROUND = 8
COUNTED = {"parameters": "parameters", "flops": "training FLOPs per token"}


def check_match(config: Mapping[str, Any]) -> None:
    """Refuse a `match` that there is not, a baseline without one, and one that cannot be.

    Raises:
        UserError, Unsupported: with the rule, the value and the remedy.
    """
    if config["match"] not in (None, *COUNTED):
        raise UserError(f"match must be null, parameters or flops, got {config['match']!r}.")
    if config["match"] is None:
        for group, name in config["baseline"].items():
            if name is not None:
                raise UserError(
                    f"baseline.{group}={name} needs something to agree in: match=parameters or "
                    "match=flops."
                )
        return
    try:
        check(baseline(config))
    except Unsupported as refusal:
        raise Unsupported(f"the baseline of match={config['match']}: {refusal}") from None


def baseline(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with the baseline's attention in all roles, and the baseline's encoding."""
    heads, names = config["model"]["heads"], config["baseline"]
    other = {
        **config,
        **dict.fromkeys(ROLE_NODES[config["task"]["name"]]),
        "attention": entry_config("attention", names["attention"] or "multi_head", heads=heads),
    }
    if names["position"] is None:
        resolve_position(other)
    else:
        other["position"] = entry_config("position", names["position"], heads=heads)
    return other


def match_baseline(config: dict[str, Any], data: PreparedData, console: Console) -> dict[str, Any]:
    """Set `model.ffn_dim` so that the model agrees with the baseline within 1%, and say so.

    A width that agrees already stays. Else it is the one that agrees best, or the multiple of 8
    next to it if that agrees within 1% too.

    Args:
        config: the resolved one of a run; changed in place.
        data: set up.
        console: where to.

    Returns:
        For `results.json`: what is matched (`by`), its value for the baseline (`target`), and the
        feed-forward's width (`ff_dim`).

    Raises:
        Unsupported: no width of at least a quarter of the model's agrees.
    """
    by, model = config["match"], config["model"]
    before, counted = model["ffn_dim"], COUNTED[by]
    target = cost(baseline(config), data)

    def at(width: int) -> float:
        return cost({**config, "model": {**model, "ffn_dim": width}}, data)

    least = max(1, round(LEAST * model["dim"]))
    # Each unit of the width has as many parameters, and takes as many products, as any other.
    a_unit = at(least + 1) - at(least)
    best = least + (target - at(least)) / a_unit
    widths = (before, ROUND * round(best / ROUND), round(best), least)
    agreeing = (x for x in widths if x >= least and abs(at(x) - target) <= MATCHED_WITHIN * target)
    width = next(agreeing, None)
    if width is None:
        raise Unsupported(
            f"match={by} finds no feed-forward that makes up for the attention: the baseline has "
            f"{target:,.0f} {counted}, and this model {at(least):,.0f} with a width of {least}, a "
            f"quarter of model.dim and the least there is, and {a_unit:,.0f} for each unit more. "
            "Raise model.ffn_dim, which is the baseline's width, or leave match out."
        )
    model["ffn_dim"] = width
    resized = f"stays {width}" if width == before else f"{before} → {width}"
    console.print(
        f"match={by}: feed-forward {resized}, {at(width):,.0f} {counted}, the baseline has "
        f"{target:,.0f}",
        highlight=False,
        soft_wrap=True,
    )
    return {"by": by, "target": target, "ff_dim": width}


def cost(config: Mapping[str, Any], data: PreparedData) -> float:
    """What the config's `match` counts."""
    if config["match"] == "flops":
        return training_flops_per_token(config, data)
    with torch.device("meta"):
        model = build_model(
            dict(config),
            vocabulary_size=data.tokenizer.vocabulary_size,
            pad_id=data.tokenizer.pad_id,
        )
    return parameter_counts(model)["parameters"]
