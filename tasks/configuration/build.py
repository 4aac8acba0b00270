"""Build models and tasks from a composed config."""

import json
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from inspect import isclass, signature
from itertools import chain
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from attention_zoo.attention.base import Attention
from attention_zoo.errors import Unsupported, UserError
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.tasks.configuration.resolved_config import find_targets
from attention_zoo.tasks.configuration.stacks import (
    ROLE_SHARING,
    kv_sources_by_role,
    layers_by_role,
)
from attention_zoo.tasks.task_spec import task_spec

TRUSTED_PACKAGES = ("attention_zoo", "torch", "lightning", "torchmetrics")


def instantiate(node: Any, *args: Any, **kwargs: Any) -> Any:
    """Build a config node by Hydra; raise UserError for options that what it builds refuses."""
    try:
        return hydra_instantiate(node, *args, **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError | ModuleNotFoundError):
            raise cause from None
        raise refusal(str(node.get("_target_")), cause or error) from error


def refusal(what: str, error: BaseException) -> UserError:
    """Return the UserError for an error that a library raised for options."""
    return UserError(f"{what} refuses its options: {' '.join(str(error).split())}")


def refuse_untrusted_targets(config: Mapping[str, Any], training_config: Mapping[str, Any]) -> None:
    """Refuse to build what a checkpoint names of packages that are no part of this program.

    What a user's own config names is the user's own choice. A checkpoint may come from others, and
    building what it names runs their code.
    """
    target = find_untrusted_target(config, training_config)
    if target is not None:
        raise Unsupported(
            f"A checkpoint may build things of {', '.join(trusted_packages())} only, got "
            f"_target_: {target}. Choose another in its place, such as data=phrases."
        )


def find_untrusted_target(
    config: Mapping[str, Any], training_config: Mapping[str, Any]
) -> str | None:
    """Return what a config has from a checkpoint's and this program does not know, if anything."""
    targets = sorted({*find_targets(config)} & {*find_targets(training_config)})
    trusted = trusted_packages()
    return next((target for target in targets if target.split(".")[0] not in trusted), None)


def trusted_packages() -> tuple[str, ...]:
    """Return the packages of which a checkpoint may name what is built."""
    plugins = [plugin.module.split(".")[0] for plugin in entry_points(group="attention_zoo")]
    return (*TRUSTED_PACKAGES, *plugins)


def build_optimizer(node: Mapping[str, Any]) -> Callable[[nn.Module], Optimizer]:
    """Return the factory of an optimizer: one that takes the model, as ours do, or its parameters.

    torch's own classes take parameters.
    """
    factory = instantiate(node)
    if not isclass(factory.func) or not issubclass(factory.func, Optimizer):
        return factory
    return lambda model: factory([x for x in model.parameters() if x.requires_grad])


def build_schedule(node: Mapping[str, Any]) -> Callable[..., LRScheduler]:
    """Return the factory of a schedule; one of torch's own need not take `total_steps`."""
    factory = instantiate(node)
    if factory.func is ReduceLROnPlateau:
        raise Unsupported("schedule must follow the steps; ReduceLROnPlateau follows a metric.")
    if "total_steps" in signature(factory).parameters:
        return factory
    return lambda optimizer, *, total_steps: factory(optimizer)


def build_model(config: Mapping[str, Any], *, vocabulary_size: int, pad_id: int) -> nn.Module:
    """Build the model of a config in plain containers, for a vocabulary."""
    sizes = {"vocabulary_size": vocabulary_size}
    if task_spec(config).is_encoder_decoder:
        sizes["pad_id"] = pad_id
    # `heads` is a size of the model, but the configs of its attention take it.
    options = {key: value for key, value in config["model"].items() if key != "heads"}
    # Hydra would turn the lists of factories into its own, so it only makes a partial.
    factory = instantiate({**options, "_partial_": True})
    try:
        return factory(**sizes, **layer_factories(config))
    except (UserError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise refusal(options["_target_"], error) from error


def layer_factories(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a model that say what its layers are.

    These are the factories of attention and positions, and which layers share keys and values.

    Layers that are alike have one factory, other ones a list of theirs. Nodes with the same content
    have the same factory, as layers share the encoding that it builds.
    """
    factories: dict[str, Any] = {}

    def factory_of(node: Any) -> Any:
        content = json.dumps(node, sort_keys=True)
        if content not in factories:
            factories[content] = instantiate(node)
        return factories[content]

    attention, positions = {}, {}
    for role, layers in layers_by_role(config).items():
        attention[role] = merge_layers([[factory_of(x.attention) for x in row] for row in layers])
        if role != "cross_attention":
            encodings = [[factory_of(x.position) for x in row] for row in layers]
            positions[role.replace("attention", "position")] = merge_layers(encodings)
    encodings = [*positions.values()]
    if all(x is encodings[0] for x in encodings):
        positions = {"position": encodings[0]}
    sharing = {ROLE_SHARING[role]: x for role, x in kv_sources_by_role(config).items()}
    return attention | positions | sharing


def merge_layers(layers: list[list[Any]]) -> Any:
    """Return the one factory of all layers, or a list with the factories of each."""
    first = layers[0][0]
    if all(x is first for x in chain(*layers)) and len(layers[0]) == 1:
        return first
    return [tuple(row) for row in layers]


def build_task(config: Mapping[str, Any], tokenizer: Any) -> Any:
    """Build the LightningModule of a config that `validate` has passed, with a new model."""
    options = {key: value for key, value in config["task"].items() if key != "name"}
    # Hydra would also build what it finds in `config`, so it only makes a partial.
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "pad_id": tokenizer.pad_id}
    return instantiate({**options, "_partial_": True})(
        model=build_model(config, **sizes),
        tokenizer=tokenizer,
        optimizer=build_optimizer(config["optimizer"]),
        schedule=build_schedule(config["schedule"]),
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
