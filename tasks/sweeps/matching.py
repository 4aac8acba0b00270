"""Equal conditions: a model resized until it is as large, or as costly, as a baseline.

`match=parameters` and `match=flops` choose the width of the feed-forward so that the model's
parameters, or its training FLOPs per target token, agree with those of the same config with
another attention in all roles and another encoding.
"""

from typing import Any

import torch
from rich.console import Console

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.analysis.costs import training_flops_per_token
from attention_zoo.tasks.configuration.build import build_task, parameter_counts
from attention_zoo.tasks.configuration.conf_files import entry_config
from attention_zoo.tasks.configuration.defaults import resolve_position
from attention_zoo.tasks.configuration.validation import validate
from attention_zoo.tasks.data.base import PreparedData
from attention_zoo.tasks.task_spec import task_spec
from attention_zoo.tasks.training.manifest import MATCH_TOLERANCE
from attention_zoo.tasks.views.console import print_line

COST_NAMES = {"parameters": "parameters", "flops": "training FLOPs per token"}


def check_match(config: dict[str, Any]) -> None:
    """Refuse an unknown `match`, a baseline without it, and a baseline that cannot be built."""
    if config["match"] not in (None, *COST_NAMES):
        raise UserError(f"match must be null, parameters or flops, got {config['match']!r}.")
    if config["match"] is None:
        for group, name in config["baseline"].items():
            if name is not None:
                remedy = "match=parameters or match=flops"
                raise UserError(f"baseline.{group}={name} needs a cost to match: {remedy}.")
        return
    if config["model"].get("ffn_dim") is None:
        raise UserError(
            f"match={config['match']} resizes the feed-forward: it needs a model.ffn_dim, got null."
        )
    try:
        validate(baseline_config(config))
    except Unsupported as refusal:
        raise Unsupported(f"the baseline of match={config['match']}: {refusal}") from None


def baseline_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with the baseline's attention in all roles, and the baseline's encoding."""
    heads, names = config["model"]["heads"], config["baseline"]
    baseline = {
        **config,
        **dict.fromkeys(task_spec(config).attention_roles),
        "stack": None,
        "attention": entry_config("attention", names["attention"] or "multi_head", heads=heads),
    }
    if names["position"] is None:
        resolve_position(baseline)
    else:
        baseline["position"] = entry_config("position", names["position"], heads=heads)
    return baseline


def match_baseline(config: dict[str, Any], data: PreparedData, console: Console) -> dict[str, Any]:
    """Set `model.ffn_dim` so that the model agrees with the baseline within 1%, and print it.

    A width that agrees already stays. Else it is the nearest multiple of 8 if that agrees, else the
    width that agrees best, at least a quarter of the model's. Returns what `results.json` records:
    the cost (`by`), its value for the baseline (`target`), and the width (`ffn_dim`).
    """
    by, model = config["match"], config["model"]
    previous, cost_name = model["ffn_dim"], COST_NAMES[by]
    target = matched_cost(baseline_config(config), data)

    def cost_at(width: int) -> float:
        return matched_cost({**config, "model": {**model, "ffn_dim": width}}, data)

    minimum = max(1, round(model["dim"] / 4))
    # The cost is linear in the width.
    unit_cost = cost_at(minimum + 1) - cost_at(minimum)
    best = minimum + (target - cost_at(minimum)) / unit_cost
    # GPUs multiply widths that are a multiple of 8 fast.
    widths = (previous, 8 * round(best / 8), round(best), minimum)
    for width in widths:
        if width >= minimum and abs(cost_at(width) - target) <= MATCH_TOLERANCE * target:
            break
    else:
        raise Unsupported(
            f"match={by} finds no feed-forward that makes up for the attention: the baseline has "
            f"{target:,.0f} {cost_name}, and this model {cost_at(minimum):,.0f} with a width of "
            f"{minimum}, the minimum of a quarter of model.dim, and {unit_cost:,.0f} more for each "
            "further unit. Raise model.ffn_dim, which is the baseline's width, or leave match out."
        )
    model["ffn_dim"] = width
    resized = f"stays {width}" if width == previous else f"{previous} → {width}"
    costs = f"{cost_at(width):,.0f} {cost_name}, the baseline has {target:,.0f}"
    print_line(console, f"match={by}: feed-forward {resized}, {costs}")
    return {"by": by, "target": target, "ffn_dim": width}


def matched_cost(config: dict[str, Any], data: PreparedData) -> float:
    """Count what the config's `match` names, on a model that is built for it."""

    def count() -> float:
        task = build_task(config, data.tokenizer)
        if config["match"] == "flops":
            return training_flops_per_token(task, data)
        return parameter_counts(task.model)["parameters"]

    try:
        with torch.device("meta"):
            return count()
    except RuntimeError:  # The model has to read its numbers to be run.
        with torch.random.fork_rng(devices=[]):
            return count()
