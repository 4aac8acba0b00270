"""Models of transformers beside ours: the same weights, the same logits.

A case builds a small model of theirs; ours is composed from the overrides that a user would give.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torch import Tensor, nn

from attention_zoo.models import Seq2Seq
from attention_zoo.tasks.configuration.build import build_model
from attention_zoo.tasks.configuration.composition import parse_command
from attention_zoo.tasks.configuration.defaults import resolve_defaults
from attention_zoo.tasks.configuration.validation import validate

VOCABULARY, PAD = 61, 0
DIM, HEADS, KV_HEADS, LAYERS, FFN_DIM = 32, 4, 2, 4, 48
# What most models of theirs call these sizes.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": DIM,
    "intermediate_size": FFN_DIM,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "attn_implementation": "eager",
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OUR_SIZES = (
    f"model.dim={DIM}",
    f"model.heads={HEADS}",
    f"model.layers={LAYERS}",
    f"model.ffn_dim={FFN_DIM}",
    "model.dropout=0.0",
    "paths.run=run",
)
TARGETS = 17  # tokens

Weights = Callable[[str], Tensor]  # by their names, in which {i} is the layer
# Our modules or parameters, and theirs; several of theirs are joined, a function computes others.
WeightMap = Mapping[str, str | tuple[str, ...] | Callable[[Weights], Tensor]]


class NamedModel(NamedTuple):
    """A model of theirs, and how ours is made equal to it."""

    name: str
    build: Callable[[], Any]
    overrides: tuple[str, ...]  # without sizes
    sizes: tuple[str, ...]  # overrides that fit the small sizes of the comparison
    weights: WeightMap
    adapt: Callable[[str, Tensor], Tensor]  # a weight of theirs, by its name
    without_effect: tuple[str, ...]  # weights of theirs that change nothing, by parts of their name
    note: str

    def __str__(self) -> str:
        return self.name


class Differences(NamedTuple):
    """The largest, relative to the largest of their logits."""

    one_pass: float
    decoding: float  # one token at a time, from theirs and from one pass
    their_rounding: float  # their decoding from their one pass


MODELS: list[NamedModel] = []


def discover_models() -> list[NamedModel]:
    """The cases of all modules here that are called `models_…`."""
    for file in sorted(Path(__file__).parent.glob("models_*.py")):
        importlib.import_module(f"tests.parity.{file.stem}")
    return MODELS


def named_model(
    name: str,
    overrides: str,
    weights: WeightMap,
    *,
    sizes: str = "",
    adapt: Callable[[str, Tensor], Tensor] = lambda name, weight: weight,
    without_effect: tuple[str, ...] = (),
    note: str = "",
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Enter a case of the table."""

    def enter(build: Callable[[], Any]) -> Callable[[], Any]:
        options = tuple(overrides.split()), tuple(sizes.split())
        MODELS.append(NamedModel(name, build, *options, weights, adapt, without_effect, note))
        return build

    return enter


def build_ours(case: NamedModel) -> Any:
    """Build our model as the command line does."""
    command = parse_command("train", [*OUR_SIZES, *case.overrides, *case.sizes])
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        composed = compose(command.config_name, overrides=command.overrides)
        resolve_defaults(composed, command.overrides)
        config: Any = OmegaConf.to_container(composed, resolve=True)
    validate(config)
    return build_model(config, vocabulary_size=VOCABULARY, pad_id=PAD).eval()


def scatter_weights(model: nn.Module) -> None:
    """Draw weights at which every part of the model has an effect on the logits.

    Larger ones would let rounding grow from layer to layer, where a norm follows small sums.
    """
    with torch.no_grad():
        for name, parameter in trained_weights(model).items():
            if parameter.dim() > 1 and not name.endswith("A_log"):  # A is no matrix of a product.
                parameter.normal_(std=0.4 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights by name without tables that are fixed, as of sinusoids."""
    return {name: x for name, x in model.named_parameters() if x.requires_grad}


def copy_weights(case: NamedModel, ours: nn.Module, theirs: nn.Module) -> None:
    """Copy every weight of theirs to ours; each of ours gets one, and each of theirs is used."""
    source, used = theirs.state_dict(), set()

    def weight_of(name: str) -> Tensor:
        used.add(source[name].data_ptr())
        return case.adapt(name, source[name])

    copied = {}
    for key, value in ours.state_dict().items():
        number = re.search(r"layers\.(\d+)\.", key)
        index = number[1] if number else ""
        pattern = key.replace(number[0], "layers.{i}.") if number else key
        module, _, leaf = pattern.rpartition(".")
        found = case.weights.get(pattern, case.weights.get(module))
        assert found is not None, f"no weight of theirs for {key}"
        if callable(found):
            weight = found(lambda name, index=index: weight_of(name.replace("{i}", index)))
        else:
            names = (found,) if isinstance(found, str) else found
            if pattern not in case.weights:
                names = tuple(f"{name}.{leaf}" for name in names)
            weight = torch.cat([weight_of(name.replace("{i}", index)) for name in names])
        copied[key] = weight.reshape(value.shape)
    unused = [
        name
        for name, x in trained_weights(theirs).items()
        if x.data_ptr() not in used and not any(part in name for part in case.without_effect)
    ]
    assert not unused, f"weights of theirs that ours lacks: {unused}"
    ours.load_state_dict(copied)


@torch.no_grad()
def differences(case: NamedModel) -> Differences:
    """Compare logits of one pass, and of decoding token by token."""
    torch.manual_seed(0)
    theirs = case.build().eval()
    scatter_weights(theirs)
    ours = build_ours(case)
    copy_weights(case, ours, theirs)
    target = torch.randint(1, VOCABULARY, (2, TARGETS))
    if isinstance(ours, Seq2Seq):
        source = torch.randint(1, VOCABULARY, (2, 11))
        source[1, 7:] = PAD
        mask = source != PAD
        encoded = theirs.get_encoder()(source, attention_mask=mask)
        memory = ours.encode(source, mask)

        def run_theirs(tokens: Tensor, cache: Any) -> Any:
            return theirs(
                encoder_outputs=encoded,
                attention_mask=mask,
                decoder_input_ids=tokens,
                past_key_values=cache,
                use_cache=True,
            )

        def run_ours(tokens: Tensor, cache: Any) -> Tensor:
            return ours.decode(tokens, memory, mask, cache=cache)
    else:

        def run_theirs(tokens: Tensor, cache: Any) -> Any:
            return theirs(tokens, **{cache_name: cache}, use_cache=True)

        def run_ours(tokens: Tensor, cache: Any) -> Tensor:
            return ours(tokens, cache=cache)

    parameters = inspect.signature(theirs.forward).parameters
    cache_name = "cache_params" if "cache_params" in parameters else "past_key_values"
    expected = run_theirs(target, None).logits
    one_pass = run_ours(target, None)
    cache, their_cache = ours.new_cache(), None
    steps, their_steps = [], []
    for token in target.split(1, dim=1):
        output = run_theirs(token, their_cache)
        their_cache = output[cache_name]
        their_steps.append(output.logits)
        steps.append(run_ours(token, cache))
    decoded, their_decoded = torch.cat(steps, dim=1), torch.cat(their_steps, dim=1)
    largest = expected.abs().max().item()

    def distance(a: Tensor, b: Tensor) -> float:
        assert a.shape == b.shape
        return (a - b).abs().max().item() / largest

    return Differences(
        distance(one_pass, expected),
        max(distance(decoded, x) for x in (their_decoded, expected, one_pass)),
        distance(their_decoded, expected),
    )
