"""Refuse a composed config whose parts do not fit each other, before data are prepared."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.configuration import conf_files
from attention_zoo.tasks.configuration.build import attention_by_role, build_model, instantiate
from attention_zoo.tasks.configuration.renamed_options import refuse_renamed_keys
from attention_zoo.tasks.task_spec import DIAGNOSTIC_DATA, TASKS, task_spec
from attention_zoo.tasks.training.fine_tuning import freeze_parameters
from attention_zoo.zoo import ATTENTION, POSITION, check_pair


def validate(config: Mapping[str, Any]) -> None:
    """Refuse a config whose task, data, attention, roles, position or sizes do not fit."""
    refuse_renamed_keys(config)
    if not isinstance(config["seed"], int):
        raise UserError(f"seed must be a whole number, got {config['seed']!r}.")
    validate_data(config)
    validate_attention(config)
    # What the sizes do not allow shows when the model is built. On the meta device that is cheap.
    with torch.device("meta"):
        model = build_model(config, vocabulary_size=1, pad_id=0)
    freeze_parameters(model, config.get("freeze", ()))
    instantiate(config["optimizer"])(model)


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
    position = POSITION.card(config["position"]["name"])
    roles = task_spec(config).attention_roles
    for node, chosen in attention_by_role(config).items():
        card = ATTENTION.card(chosen["name"])
        try:
            # The encoding acts on self-attention; cross-attention has none.
            check_pair(card, roles[node], None if roles[node] == "cross" else position)
        except Unsupported as refusal:
            raise Unsupported(f"{node}={card.name}: {refusal}") from None
