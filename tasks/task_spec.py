"""The tasks that models are trained on, described without importing torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attention_zoo.zoo import Role

DIAGNOSTIC_DATA = "attention_zoo.tasks.data.diagnostic_data.DiagnosticData"  # its `_target_`


@dataclass(frozen=True)
class TaskSpec:
    """What the program has to know about a task before it builds anything."""

    name: str  # on the command line, `task=name`
    attention_roles: Mapping[str, Role]  # the config node of each attention, with its role
    data_modules: tuple[str, ...]  # those that the task can be trained on
    command: str  # with which a trained model writes text
    is_encoder_decoder: bool  # otherwise a decoder that continues its own input


TRANSLATION = TaskSpec(
    name="translation",
    attention_roles={
        "encoder_attention": "global",
        "decoder_attention": "causal",
        "cross_attention": "cross",
    },
    data_modules=("attention_zoo.tasks.data.translation_data.TranslationData",),
    command="translate",
    is_encoder_decoder=True,
)
LANGUAGE_MODELING = TaskSpec(
    name="language_modeling",
    attention_roles={"attention": "causal"},
    data_modules=("attention_zoo.tasks.data.language_data.LanguageData", DIAGNOSTIC_DATA),
    command="generate",
    is_encoder_decoder=False,
)
TASKS = {spec.name: spec for spec in (TRANSLATION, LANGUAGE_MODELING)}


def task_spec(config: Mapping[str, Any]) -> TaskSpec:
    """Return the task of a composed config."""
    return TASKS[config["task"]["name"]]
