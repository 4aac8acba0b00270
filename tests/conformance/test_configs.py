"""Each entry has a yaml of its name, and each yaml an entry, whose options it gives."""

import pytest
from omegaconf import OmegaConf

import attention_zoo
from attention_zoo import UserError
from attention_zoo.factory import options_of
from attention_zoo.tasks.configuration.conf_files import TRAINING_LENGTH_OPTIONS
from attention_zoo.zoo import ATTENTION, POSITION, ROLES
from tests.conformance.configs import (
    GROUPS,
    HEADS,
    config,
    config_folder,
    options,
    parameters,
)

ENTRIES = [(group, name) for group, registry in GROUPS.items() for name in registry]


@pytest.mark.parametrize(("group", "name"), ENTRIES)
def test_the_yaml_builds_the_entry(group: str, name: str) -> None:
    chosen = config(group, name)
    assert chosen["_target_"] == f"attention_zoo.create_{group}"
    assert chosen["_partial_"] is True, "layers are built from a factory"
    assert chosen["_convert_"] == "all"
    assert chosen["name"] == name
    given = (
        {"dim", "role"} if group == "attention" else {"dim", "role", "heads", "head_dim", "layer"}
    )
    assert set(options(group, name)) <= parameters(GROUPS[group][name]) - given


@pytest.mark.parametrize("group", list(GROUPS))
def test_every_yaml_has_an_entry(group: str) -> None:
    registry = GROUPS[group]
    folders = {config_folder(group, registry[name]) for name in registry}
    stems = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    assert stems == set(registry)


@pytest.mark.parametrize(("group", "name"), ENTRIES)
def test_the_defaults_of_a_yaml_are_those_of_the_constructor(group: str, name: str) -> None:
    """But for `heads`, which come from the model, and the length that the model is trained at."""
    entry = GROUPS[group][name]
    given = OmegaConf.load(config_folder(group, entry) / f"{name}.yaml")
    for option, parameter in options_of(entry).items():
        if option not in given or parameter.default is parameter.empty or option == "heads":
            continue
        if option in TRAINING_LENGTH_OPTIONS and given[option] is None:
            continue  # The program fills it in.
        assert given[option] == parameter.default, option


@pytest.mark.parametrize(("group", "name"), ENTRIES)
def test_a_number_cannot_be_null(group: str, name: str) -> None:
    """Unless the constructor says what null means. A seed counts nothing."""
    entry = GROUPS[group][name]
    sizes = {"dim": 16, "role": entry.card.roles[0]}
    if group == "position":
        sizes |= {"heads": HEADS, "head_dim": 4}
    chosen = sizes | options(group, name)
    for option, parameter in options_of(entry).items():
        if option in options(group, name) and parameter.annotation is int and option != "seed":
            with pytest.raises((UserError, TypeError)):
                getattr(attention_zoo, f"create_{group}")(name, **chosen | {option: None})


@pytest.mark.parametrize("name", list(ATTENTION))
def test_the_card_of_an_attention_is_filled_in(name: str) -> None:
    card = ATTENTION.card(name)
    assert card.name == name
    assert card.paper and card.equation and card.reference
    assert card.roles and set(card.roles) <= set(ROLES)
    assert set(card.masks) <= set(attention_zoo.Mask.__dataclass_fields__)
    assert ATTENTION[name].__doc__


@pytest.mark.parametrize("name", list(POSITION))
def test_the_card_of_an_encoding_is_filled_in(name: str) -> None:
    card = POSITION.card(name)
    assert card.name == name
    assert card.paper and card.equation and card.reference
    assert card.roles and set(card.roles) <= set(ROLES)
    assert POSITION[name].__doc__


@pytest.mark.parametrize("name", list(POSITION))
def test_an_encoding_is_built_as_a_model_builds_it(name: str) -> None:
    for role in POSITION.card(name).roles:
        position = attention_zoo.create_position(
            name, dim=16, heads=HEADS, head_dim=4, role=role, **options("position", name)
        )
        assert position.card is POSITION.card(name)
