"""The registry: names, cards, plugins, and refusals that say what to do."""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest

import attention_zoo
from attention_zoo import Unsupported, UserError, stored_cards, zoo
from attention_zoo.tasks.card_file import render_cards
from attention_zoo.zoo import (
    ATTENTION,
    POSITION,
    AttentionCard,
    PositionCard,
    Registry,
    Site,
    check_pair,
    other_names,
    spell,
    unknown_name_message,
)

CARD = AttentionCard(
    name="mine",
    paper="mine",
    equation="x",
    reference="closed form",
    roles=("causal",),
    masks=("causal",),
    positions=("heads",),
)


def test_names_are_sorted_and_have_cards() -> None:
    for names in (attention_zoo.list_attention(), attention_zoo.list_position()):
        assert names == sorted(names)
        assert [attention_zoo.card(name).name for name in names] == names


@pytest.mark.parametrize(
    ("wrong", "right"), [("multihed", "multi_head"), ("rotery", "rotary"), ("alibbi", "alibi")]
)
def test_an_unknown_name_gets_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(Unsupported, match=f"Did you mean .*{right}") as error:
        attention_zoo.card(wrong)
    assert "linear" in str(error.value) and "learned" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "name", "here"),
    [
        ("attention", "mamba2", "state_space_dual"),
        ("attention", "Mamba-2", "state_space_dual"),
        ("attention", "gated_delta_net", "gated_delta"),
        ("attention", "gla", "gated_linear or grouped_latent"),
        ("position", "RoPE", "rotary"),
        ("position", "nope", "none"),
        ("attention or position", "rope", "rotary"),
    ],
)
def test_a_name_of_elsewhere_gets_the_one_here(kind: str, name: str, here: str) -> None:
    message = unknown_name_message(kind, name, [])
    assert message.startswith(f"There is no {kind} {name!r}. It is called {here} here.")


@pytest.mark.parametrize("name", ["hyena", "flash", "flash_attention", "s4", "stack"])
def test_what_the_zoo_lacks_gets_no_wrong_name(name: str) -> None:
    message = unknown_name_message("attention or position", name, [*ATTENTION, *POSITION])
    assert message.startswith(f"There is no attention or position {name!r}. Choices: ")


@pytest.mark.parametrize(
    ("name", "right"), [("linear_attention", "linear"), ("rotary_embedding", "rotary")]
)
def test_a_word_for_the_kind_is_no_part_of_a_name(name: str, right: str) -> None:
    message = unknown_name_message("attention or position", name, [*ATTENTION, *POSITION])
    assert f"Did you mean {right}?" in message


@pytest.mark.parametrize("registry", [ATTENTION, POSITION], ids=["attention", "position"])
def test_no_name_of_elsewhere_is_one_of_here(registry: Registry) -> None:
    here = {spell(name) for name in registry}
    others = [(spell(other), name) for other, name in other_names(registry.kind)]
    assert not here & {other for other, _ in others} and len({*others}) == len(others) > 10


def test_an_unknown_name_gets_the_names_of_its_kind() -> None:
    with pytest.raises(Unsupported, match=r"no attention 'rotary'.*multi_head") as error:
        ATTENTION["rotary"]
    assert "alibi" not in str(error.value)
    with pytest.raises(Unsupported, match=r"no position 'linear'"):
        POSITION["linear"]


def test_a_name_is_registered_once() -> None:
    registry = Registry("attention", AttentionCard)

    @registry.register(**vars(CARD))
    class Mine:
        pass

    # As when a module is imported anew.
    registry.register(**vars(CARD))(Mine)
    namesake = type("Mine", (), {"__module__": "elsewhere", "__qualname__": Mine.__qualname__})
    for other in (namesake, type("Other", (), {})):
        with pytest.raises(ValueError, match=r"'mine' is registered already"):
            registry.register(**vars(CARD))(other)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[EntryPoint], None]]:
    """Let an entry point be that of an installed plugin."""

    def forget() -> None:
        zoo.discover.cache_clear()
        zoo.stored_entries.cache_clear()

    def install_plugin(point: EntryPoint) -> None:
        monkeypatch.setattr(zoo, "entry_points", lambda group: [point])
        forget()

    yield install_plugin
    monkeypatch.undo()
    forget()


def test_a_plugin_is_found_by_its_entry_point(
    install: Callable[[EntryPoint], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a_plugin.py").write_text(
        "from attention_zoo import ATTENTION\n\n"
        f"@ATTENTION.register(**{vars(CARD)})\nclass Mine:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    install(EntryPoint(name="mine", value="a_plugin", group="attention_zoo"))
    try:
        assert {"multi_head", "mine"} <= {*ATTENTION}
        assert "mine" in ATTENTION and attention_zoo.card("mine") == CARD
    finally:
        del ATTENTION._entries["mine"], sys.modules["a_plugin"]


def test_a_plugin_that_cannot_be_imported_is_named_and_no_more(
    install: Callable[[EntryPoint], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Where an entry is asked for that it may have; all others are at hand."""
    install(EntryPoint(name="mine", value="no_such_module", group="attention_zoo"))
    said = "The plugin mine (no_such_module) cannot be imported: ModuleNotFoundError: No module"
    assert "multi_head" in list(ATTENTION) and ATTENTION["multi_head"]
    assert [record.getMessage().startswith(said) for record in caplog.records] == [True]
    with pytest.raises(Unsupported, match="no attention 'theirs'") as refused:
        ATTENTION["theirs"]
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_stored_cards_are_those_of_the_entries() -> None:
    renew = "run: python -m attention_zoo.tasks.card_file"
    assert stored_cards.FILE.read_text(encoding="utf-8") == render_cards(), renew
    stored = zoo.stored_entries()
    assert stored is not None
    for registry in (ATTENTION, POSITION):
        cards = {name: entry.card for name, entry in stored[registry.kind].items()}
        assert cards == {name: registry[name].card for name in cards}, renew  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "file", ["zoo.py", "attention/softmax.py", "conf/attention/linear.yaml", "position/new.py"]
)
def test_cards_are_not_read_where_their_code_has_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str
) -> None:
    for name in (*stored_cards.SOURCES, "cards.json"):
        for source in stored_cards.PACKAGE.glob(name):
            copy = tmp_path / source.relative_to(stored_cards.PACKAGE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    monkeypatch.setattr(stored_cards, "PACKAGE", tmp_path)
    monkeypatch.setattr(stored_cards, "FILE", tmp_path / "cards.json")
    assert stored_cards.read_stored_cards() is not None
    with (tmp_path / file).open("a") as source:
        source.write("# changed\n")
    assert stored_cards.read_stored_cards() is None
    stored_cards.FILE.unlink()
    assert stored_cards.read_stored_cards() is None


def test_the_version_is_that_of_the_package() -> None:
    assert attention_zoo.__version__ == version("attention-zoo")


def test_a_role_that_is_not_declared_is_refused_with_those_that_can() -> None:
    with pytest.raises(Unsupported, match=r"mine cannot be cross attention; it can be causal\."):
        check_pair(CARD, "cross")


@pytest.mark.parametrize("acts", [("embeddings",), ("scores",), ("heads", "length")])
def test_an_encoding_that_is_not_declared_is_refused_with_those_that_are(
    acts: tuple[Site, ...],
) -> None:
    position = PositionCard(name="other", paper="", equation="", reference="", acts=acts)
    with pytest.raises(Unsupported, match=r"mine cannot take position=other.*rotary") as error:
        check_pair(CARD, "causal", position)
    assert "alibi" not in str(error.value)


def test_an_encoding_refuses_a_role_that_it_does_not_serve() -> None:
    position = PositionCard(
        name="other", paper="", equation="", reference="", acts=("heads",), roles=("global",)
    )
    with pytest.raises(Unsupported, match=r"other cannot serve causal attention; it serves global"):
        check_pair(CARD, "causal", position)


def test_refusals_are_errors_of_the_user() -> None:
    assert issubclass(Unsupported, UserError) and issubclass(UserError, ValueError)
