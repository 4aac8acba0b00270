"""From a composed config to objects."""

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from itertools import chain
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.configuration.compatibility import (
    DATA_MODULES,
    DIAGNOSTICS,
    SYMBOLS,
    choices,
    target_of,
    task_of,
)
from attention_zoo.tasks.configuration.entry_configs import entry_config
from attention_zoo.zoo import ATTENTION, POSITION, Role, check_pair

TRUSTED = ("attention_zoo", "torch", "lightning", "torchmetrics")
ROLE_NODES: dict[str, dict[str, Role]] = {
    "translation": {
        "encoder_attention": "global",
        "decoder_attention": "causal",
        "cross_attention": "cross",
    },
    "language_modeling": {"attention": "causal"},
}


def instantiate(node: Any, *args: Any, **kwargs: Any) -> Any:
    """`hydra.utils.instantiate`, for targets of this project, its plugins and its frameworks only.

    Raises:
        Unsupported: another target.
    """
    plugins = [plugin.module.split(".")[0] for plugin in entry_points(group="attention_zoo")]
    trusted = (*TRUSTED, *plugins)
    for target in targets(node):
        if target.split(".")[0] not in trusted:
            raise Unsupported(
                f"A config may build things of {', '.join(trusted)} only, got _target_: {target}."
            )
    try:
        return hydra_instantiate(node, *args, **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a config."""
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def attention_by_role(config: Mapping[str, Any]) -> dict[str, Any]:
    """The node of each attention that the task's model has: a role's own, or `attention`.

    Raises:
        UserError: a role was given the name of an attention as a plain value.
    """
    roles = ROLE_NODES[config["task"]["name"]]
    for node in roles:
        if isinstance(config[node], str):
            raise UserError(
                f"{node} is chosen as a group, got {node}={config[node]}; "
                f"give attention@{node}={config[node]}."
            )
    return {node: config[node] or config["attention"] for node in roles}


def resolve_defaults(
    config: DictConfig, trained: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Give a composed config what depends on its other parts, where it was not chosen.

    A positional encoding that all attention takes; and the `original_length` of an encoding that
    has one, null in its yaml: the length that the model is trained at, or was, if it is from a
    checkpoint.

    Args:
        config: to be completed in place.
        trained: the config in the checkpoint.

    Returns:
        What was chosen, by group.
    """
    if "position" not in config:
        return {}
    chosen = {} if config["position"] is not None else resolve_position(config)
    position = config["position"]
    if "original_length" in position and position["original_length"] is None:
        data = trained["data"] if trained else OmegaConf.to_container(config["data"], resolve=True)
        position["original_length"] = trained_tokens(data)
    return chosen


def resolve_position(config: DictConfig | dict[str, Any]) -> dict[str, str]:
    """Rotary positions, or sinusoidal ones where an attention of the model cannot take those."""
    roles = ROLE_NODES[config["task"]["name"]]
    sites = [
        ATTENTION.card(chosen["name"]).positions
        for node, chosen in attention_by_role(config).items()
        if roles[node] != "cross"
    ]
    name = "rotary" if all("heads" in places for places in sites) else "sinusoidal"
    config["position"] = entry_config("position", name, heads=config["model"]["heads"])
    return {"position": name}


def trained_tokens(data: Any) -> int | None:
    """The longest sequences that data are trained on, in tokens; None where they do not tell.

    Of text, its windows; of diagnostics, their sequences; of pairs, the longest line that is kept.
    """
    if data["_target_"] == DIAGNOSTICS:
        return instantiate(data["source"]).tokens_per_sequence
    return data.get("context_length") or data.get("max_tokens")


def check(config: dict[str, Any]) -> None:
    """Refuse a config whose task, data, attention, roles, position, sizes do not go together.

    Raises:
        Unsupported: with the rule, the value and the legal choices. UserError: an impossible size.
    """
    if not isinstance(config["seed"], int):
        raise UserError(f"seed must be a whole number, got {config['seed']!r}.")
    check_data(config)
    position = POSITION.card(config["position"]["name"])
    for node, chosen in attention_by_role(config).items():
        role = ROLE_NODES[config["task"]["name"]][node]
        card = ATTENTION.card(chosen["name"])
        try:
            # The encoding acts on self-attention only; cross-attention goes without.
            check_pair(card, role, None if role == "cross" else position)
        except Unsupported as refusal:
            raise Unsupported(f"{node}={card.name}: {refusal}") from None
    # What does not fit shows when model and optimiser are built. On this device it costs nothing.
    with torch.device("meta"):
        model = build_model(config, vocabulary_size=1, pad_id=0)
    instantiate(config["optimizer"])(model)


def check_data(config: dict[str, Any]) -> None:
    """Refuse text for the task of pairs, pairs for that of text, and a tokenizer of other things.

    Data modules of others are let through: they know what they need.
    """
    task, given = config["task"]["name"], config["data"]["_target_"]
    if given not in chain(*DATA_MODULES.values()):
        return
    if given not in DATA_MODULES[task]:
        raise Unsupported(
            f"task={task} cannot be trained on data={config['choices']['data']}. "
            f"Data for it: {', '.join(x for x in choices('data') if task_of(x) == task)}."
        )
    tokenizer = config["tokenizer"]["_target_"]
    symbols = given == DIAGNOSTICS
    if symbols != (tokenizer == SYMBOLS):
        named = {x: target_of("tokenizer", x) for x in choices("tokenizer")}
        chosen = next((x for x in named if named[x] == tokenizer), tokenizer)
        legal = [x for x in named if (named[x] == SYMBOLS) == symbols]
        raise Unsupported(
            f"tokenizer={chosen} cannot read data={config['choices']['data']}, which is "
            f"made of {'symbols' if symbols else 'text'}. Tokenizers for it: {', '.join(legal)}."
        )


def build_model(config: dict[str, Any], *, vocabulary_size: int, pad_id: int) -> nn.Module:
    """The model of a config in plain containers, for what the data decide."""
    sizes = {"vocabulary_size": vocabulary_size}
    if config["task"]["name"] == "translation":
        sizes["pad_id"] = pad_id
    # `heads` is a size of the model, but it is the attention's configs that take it.
    options = {key: value for key, value in config["model"].items() if key != "heads"}
    factories = {node: instantiate(chosen) for node, chosen in attention_by_role(config).items()}
    return instantiate(options, **sizes, **factories, position=instantiate(config["position"]))


def build_task(config: dict[str, Any], tokenizer: Any) -> Any:
    """The LightningModule of a config, around a new model."""
    check(config)
    options = {key: value for key, value in config["task"].items() if key != "name"}
    # Called by us, not by Hydra, which would build what it finds in `composed` as well.
    return instantiate({**options, "_partial_": True})(
        model=build_model(
            config, vocabulary_size=tokenizer.vocabulary_size, pad_id=tokenizer.pad_id
        ),
        tokenizer=tokenizer,
        optimizer=instantiate(config["optimizer"]),
        schedule=instantiate(config["schedule"]),
        decoding=instantiate(config["decoding"]),
        composed=config,
    )


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters: in total, in attention, in the positional encoding."""
    from attention_zoo.attention.base import Attention
    from attention_zoo.position.base import PositionalEncoding

    def count(kind: type[nn.Module]) -> dict[int, int]:
        parts = [module for module in model.modules() if isinstance(module, kind)]
        return {id(p): p.numel() for part in parts for p in part.parameters()}

    # An encoding of a layer's own is a part of the layer's attention.
    position, attention = count(PositionalEncoding), count(Attention)
    return {
        "parameters": sum(count(nn.Module).values()),
        "parameters/attention": sum(n for p, n in attention.items() if p not in position),
        "parameters/position": sum(position.values()),
    }
