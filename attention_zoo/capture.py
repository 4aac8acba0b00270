"""Capture the attention maps inside a module while it runs."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.errors import Unsupported, UserError, short_repr
from attention_zoo.zoo import Role

Maps = dict[str, list[Tensor]]
# The part of an encoder-decoder in which attention of a role stands.
PARTS: dict[Role, str] = {"global": "encoder", "causal": "decoder", "cross": "cross"}
# The name of an attention in a layer, but for the first of those that stand side by side.
LATER_BRANCH = re.compile(r"\.branches\.[1-9][0-9]*$")


class CapturedAttention(NamedTuple):
    """The weights of one attention in one call."""

    name: str  # of the attention among the module's submodules
    role: Role
    weights: Tensor  # [b h q k], from `attention_map` with the arguments of the call


@contextmanager
def capture_attention(module: nn.Module) -> Iterator[list[CapturedAttention]]:
    """Capture the weights of all attention in a module, in the order of the calls.

    The module's outputs do not change: the weights are computed in addition, without dropout, and
    with gradients if these are enabled. Attention that is called twice appears twice. Compiled
    modules run uncompiled meanwhile, as compiled ones do not call hooks.

    Raises:
        UserError: the module neither is attention of the zoo nor contains any, at any depth.
        Unsupported: in the module's pass, where it decodes with a cache.

    >>> from attention_zoo import create_attention
    >>> model = nn.Sequential(create_attention("multi_head", dim=8, heads=2, role="causal"))
    >>> with capture_attention(model) as captured:
    ...     out = model(torch.randn(1, 5, 8))
    >>> [(name, role, tuple(weights.shape)) for name, role, weights in captured]
    [('0', 'causal', (1, 2, 5, 5))]
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"attention is captured in a module, got {short_repr(module)}.")
    parts = {name: x for name, x in module.named_modules() if isinstance(x, Attention)}
    if not parts:
        raise UserError(
            f"{type(module).__name__} contains no attention of the zoo; choose a module that does."
        )
    captured: list[CapturedAttention] = []
    with ExitStack() as stack:
        # Without this module nothing is compiled, and its import takes a second.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, attention in parts.items():
            stack.enter_context(
                attention.register_forward_pre_hook(capture_hook(name, captured), with_kwargs=True)
            )
        yield captured


def capture_hook(name: str, captured: list[CapturedAttention]) -> Callable[..., None]:
    """Return a hook that captures the weights of each call of an attention."""

    def hook(attention: Attention, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        options = dict(options)
        if options.pop("cache", None) is not None:
            raise Unsupported(
                "decoding with a cache cannot be captured: each call sees its own tokens only. "
                "Capture one pass over the whole sequence, without a cache."
            )
        weights = attention.attention_map(*inputs, **options)
        captured.append(CapturedAttention(name, attention.role, weights))

    return hook


def heads_by_role(module: nn.Module) -> dict[str, list[int]]:
    """Return the number of heads of each layer of a model, as `group_by_role` divides its maps.

    The model has to call each attention once, in the order of its submodules.
    """
    parts = [(name, x) for name, x in module.named_modules() if isinstance(x, Attention)]
    maps = [CapturedAttention(name, x.role, torch.empty(1, x.num_maps, 0, 0)) for name, x in parts]
    return {part: [weights.shape[1] for weights in x] for part, x in group_by_role(maps).items()}


def group_by_role(captured: Iterable[CapturedAttention]) -> Maps:
    """Group the weights [b h q k] of all layers by `encoder`, `decoder` and `cross`.

    These are the parts with global and causal self-attention and with cross-attention. The heads of
    mechanisms that stand side by side in a layer follow each other.
    """
    maps: Maps = {}
    captured = [*captured]
    for role, part in PARTS.items():
        layers: list[Tensor] = []
        for name, its_role, weights in captured:
            if its_role != role:
                continue
            if layers and LATER_BRANCH.search(name):
                layers[-1] = torch.cat([layers[-1], weights], dim=1)
            else:
                layers.append(weights)
        if layers:
            maps[part] = layers
    return maps
