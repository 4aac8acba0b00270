"""The tasks that models are trained on, described without importing torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attention_zoo.zoo import Role

# The data modules, by their `_target_`.
LANGUAGE_DATA = "attention_zoo.tasks.data.language_data.LanguageData"
DIAGNOSTIC_DATA = "attention_zoo.tasks.data.diagnostic_data.DiagnosticData"
TRANSLATION_DATA = "attention_zoo.tasks.data.translation_data.TranslationData"


@dataclass(frozen=True)
class TaskSpec:
    """What the program has to know about a task before it builds anything.

    Args:
        name: the task's name on the command line, `task=name`.
        attention_roles: the config node of each attention in the model, with its role.
        data_modules: the data modules that the task can be trained on.
        command: the command with which a trained model writes text.
        is_encoder_decoder: the model encodes a source and writes a target; otherwise it is a
            decoder that continues its own input.
    """

    name: str
    attention_roles: Mapping[str, Role]
    data_modules: tuple[str, ...]
    command: str
    is_encoder_decoder: bool


TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="translation",
            attention_roles={
                "encoder_attention": "global",
                "decoder_attention": "causal",
                "cross_attention": "cross",
            },
            data_modules=(TRANSLATION_DATA,),
            command="translate",
            is_encoder_decoder=True,
        ),
        TaskSpec(
            name="language_modeling",
            attention_roles={"attention": "causal"},
            data_modules=(LANGUAGE_DATA, DIAGNOSTIC_DATA),
            command="generate",
            is_encoder_decoder=False,
        ),
    )
}
TRANSLATION = TASKS["translation"]
LANGUAGE_MODELING = TASKS["language_modeling"]


def task_spec(config: Mapping[str, Any]) -> TaskSpec:
    """Return the task of a composed config."""
    return TASKS[config["task"]["name"]]
