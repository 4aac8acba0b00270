"""Refuse a composed config whose parts do not fit each other, before data are prepared."""

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch

from attention_zoo.errors import Unsupported, UserError, check_positive
from attention_zoo.tasks.configuration import conf_files
from attention_zoo.tasks.configuration.build import (
    build_task,
    instantiate,
    parameter_counts,
    refusal,
)
from attention_zoo.tasks.configuration.renamed_options import refuse_renamed_keys
from attention_zoo.tasks.configuration.stacks import ROLE_PATTERNS, layers_by_role
from attention_zoo.tasks.data.tokenizers import ByteTokenizer
from attention_zoo.tasks.host_memory import check_memory
from attention_zoo.tasks.task_spec import DIAGNOSTIC_DATA, TASKS, task_spec
from attention_zoo.tasks.training.fine_tuning import freeze_parameters
from attention_zoo.zoo import ATTENTION, POSITION, check_pair

FLOAT32_BYTES = 4  # of a weight when it is made
MANY_STEPS = 10**9  # for a run whose number of steps the data decide


def check_seed(seed: int) -> None:
    """Refuse a seed that NumPy cannot take."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must lie between 0 and 2^32 - 1, got {seed}.")


def validate(config: Mapping[str, Any]) -> Any:
    """Refuse a config whose task, data, attention, roles, position or sizes do not fit.

    Return its `Task` on the meta device, with the vocabulary of bytes.
    """
    refuse_renamed_keys(config)
    validate_data(config)
    return validate_model(config)


def validate_model(config: Mapping[str, Any]) -> Any:
    """Refuse a config whose attention, roles, position or sizes do not fit, whatever the data.

    Return its `Task` on the meta device, with the vocabulary of bytes.
    """
    check_seed(config["seed"])
    check_positive(**{"model.heads": config["model"]["heads"]})
    validate_attention(config)
    # What its options do not allow shows when a task is built. On the meta device that is cheap.
    with torch.device("meta"):
        task = build_task(config, ByteTokenizer())
    freeze_parameters(task.model, config.get("freeze", ()))
    parameters = parameter_counts(task.model)["parameters"]
    check_memory(
        FLOAT32_BYTES * parameters,
        f"{parameters:,} parameters",
        "give a smaller model.dim, model.ffn_dim or model.layers, or fewer positions",
    )
    try:
        optimizer = task.optimizer_factory(task.model)
        task.schedule_factory(optimizer, total_steps=planned_steps(config))
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise refusal("optimizer or schedule", error) from error
    return task


def planned_steps(config: Mapping[str, Any]) -> int | float:
    """Return the steps of a run: the exact number where epochs do not count, else many."""
    trainer = config["trainer"]
    if trainer["max_steps"] >= 0:
        return int(trainer["max_steps"])
    return math.inf if (trainer.get("max_epochs") or -1) < 0 else MANY_STEPS


def validate_data(config: Mapping[str, Any]) -> None:
    """Refuse data that the task cannot be trained on, and a tokenizer that cannot read the data."""
    task, data_module = task_spec(config), config["data"]["_target_"]
    if data_module not in chain(*(spec.data_modules for spec in TASKS.values())):
        return  # Data modules from outside the project know what they need.
    if data_module not in task.data_modules:
        choices = conf_files.list_choices("data")
        legal = [choice for choice in choices if conf_files.data_task(choice) == task.name]
        raise Unsupported(
            f"task={task.name} cannot be trained on data={config['choices']['data']}. "
            f"Data for it: {', '.join(legal)}."
        )
    tokenizer = config["tokenizer"]["_target_"]
    if tokenizer.startswith("attention_zoo."):
        instantiate(config["tokenizer"])([])  # It refuses its options before any line is read.
    needs_symbols = data_module == DIAGNOSTIC_DATA
    if needs_symbols != (tokenizer == conf_files.SYMBOL_TOKENIZER):
        names = conf_files.list_choices("tokenizer")
        targets = {name: conf_files.choice_target("tokenizer", name) for name in names}
        chosen = next((name for name in targets if targets[name] == tokenizer), tokenizer)
        reads_symbols = {x: targets[x] == conf_files.SYMBOL_TOKENIZER for x in names}
        legal = [x for x in names if reads_symbols[x] == needs_symbols]
        raise Unsupported(
            f"tokenizer={chosen} cannot read data={config['choices']['data']}, which is made of "
            f"{'symbols' if needs_symbols else 'text'}. Tokenizers for it: {', '.join(legal)}."
        )


def validate_attention(config: Mapping[str, Any]) -> None:
    """Refuse an attention that cannot play its role, or cannot take the positional encoding."""
    roles = task_spec(config).attention_roles
    for node, layers in layers_by_role(config).items():
        for index, layer in enumerate(layers):
            for path, attention, position in layer:
                card = ATTENTION.card(attention["name"])
                # The encoding acts on self-attention; cross-attention has none.
                encoding = None if position is None else POSITION.card(position["name"])
                try:
                    check_pair(card, roles[node], encoding)
                except Unsupported as refusal:
                    if path.startswith("stack."):
                        raise Unsupported(
                            f"{node}, layer {index}, {path}={card.name}: {refusal} Or give another "
                            f"pattern: stack.{ROLE_PATTERNS[node]}."
                        ) from None
                    raise Unsupported(f"{node}={card.name}: {refusal}") from None
