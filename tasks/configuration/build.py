"""Build models and tasks from a composed config."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from torch import nn

from attention_zoo.attention.base import Attention
from attention_zoo.errors import Unsupported, UserError
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.tasks.configuration.resolved_config import find_targets
from attention_zoo.tasks.task_spec import task_spec

TRUSTED_PACKAGES = ("attention_zoo", "torch", "lightning", "torchmetrics")


def instantiate(node: Any, *args: Any, **kwargs: Any) -> Any:
    """Build a config node by Hydra, if its targets are of this project, a plugin or a framework."""
    plugins = [plugin.module.split(".")[0] for plugin in entry_points(group="attention_zoo")]
    trusted = (*TRUSTED_PACKAGES, *plugins)
    for target in find_targets(node):
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


def attention_by_role(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of each attention in the task's model: its own, or else `attention`."""
    roles = task_spec(config).attention_roles
    for node in roles:
        if isinstance(config[node], str):
            raise UserError(
                f"{node} is chosen as a group, got {node}={config[node]}; "
                f"give attention@{node}={config[node]}."
            )
    return {node: config[node] or config["attention"] for node in roles}


def build_model(config: Mapping[str, Any], *, vocabulary_size: int, pad_id: int) -> nn.Module:
    """Build the model of a config in plain containers, for a vocabulary."""
    sizes = {"vocabulary_size": vocabulary_size}
    if task_spec(config).is_encoder_decoder:
        sizes["pad_id"] = pad_id
    # `heads` is a size of the model, but the configs of its attention take it.
    options = {key: value for key, value in config["model"].items() if key != "heads"}
    factories = {node: instantiate(chosen) for node, chosen in attention_by_role(config).items()}
    return instantiate(options, **sizes, **factories, position=instantiate(config["position"]))


def build_task(config: Mapping[str, Any], tokenizer: Any) -> Any:
    """Build the LightningModule of a config that `validate` has passed, with a new model."""
    options = {key: value for key, value in config["task"].items() if key != "name"}
    # Hydra would also build what it finds in `config`, so it only makes a partial.
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "pad_id": tokenizer.pad_id}
    return instantiate({**options, "_partial_": True})(
        model=build_model(config, **sizes),
        tokenizer=tokenizer,
        optimizer=instantiate(config["optimizer"]),
        schedule=instantiate(config["schedule"]),
        decoding=instantiate(config["decoding"]),
        config=config,
    )


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Count the parameters of a model: in total, in attention, in the positional encoding."""

    def count(kind: type[nn.Module]) -> dict[int, int]:
        parts = [module for module in model.modules() if isinstance(module, kind)]
        return {id(p): p.numel() for part in parts for p in part.parameters()}

    # An encoding that belongs to a layer lies inside the layer's attention.
    position, attention = count(PositionalEncoding), count(Attention)
    return {
        "parameters": sum(count(nn.Module).values()),
        "parameters/attention": sum(n for p, n in attention.items() if p not in position),
        "parameters/position": sum(position.values()),
    }
