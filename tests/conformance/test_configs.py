"""Each entry has a yaml of its name, and each yaml an entry, whose options it gives."""

import pytest

import attention_zoo
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


@pytest.mark.parametrize("name", list(ATTENTION))
def test_the_card_of_an_attention_is_filled_in(name: str) -> None:
    card = ATTENTION.card(name)
    assert card.name == name
    assert card.paper and card.equation and card.reference
    assert card.roles and set(card.roles) <= set(ROLES)
    assert set(card.masks) <= set(attention_zoo.Mask.__dataclass_fields__)
    assert bool(card.cache) == bool(card.decode_state)
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
