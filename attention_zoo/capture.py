"""What the attention inside a module looks at, read while the module runs as it is."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_zoo.attention.base import Attention
from attention_zoo.errors import Unsupported, UserError
from attention_zoo.zoo import Role

Maps = dict[str, list[Tensor]]
# Where attention of a role stands in an encoder-decoder.
PARTS: dict[Role, str] = {"global": "encoder", "causal": "decoder", "cross": "cross"}


class CapturedAttention(NamedTuple):
    """What one attention looked at in one call.

    Args:
        name: of the attention among the watched module's modules.
        role: "global", "causal" or "cross".
        weights: [b h q k], what `attention_map` gives for the very arguments of the call.
    """

    name: str
    role: Role
    weights: Tensor


@contextmanager
def capture_attention(module: nn.Module) -> Iterator[list[CapturedAttention]]:
    """Reads the weights of all attention in a module, in the order in which it is called.

    The module gives what it gives unwatched: the weights are computed beside its own pass, without
    dropout, and with gradients where these are on. Attention that is called twice is there twice.
    Compiled modules run uncompiled meanwhile, as compiled ones do not see who watches.

    Args:
        module: whatever holds attention of the zoo, at any depth, or is such attention.

    Raises:
        UserError: the module holds no attention of the zoo.
        Unsupported: in the module's pass, where it decodes with a cache.

    >>> from attention_zoo import create_attention
    >>> model = nn.Sequential(create_attention("multi_head", dim=8, heads=2, role="causal"))
    >>> with watching(model) as watched:
    ...     out = model(torch.randn(1, 5, 8))
    >>> [(name, role, tuple(weights.shape)) for name, role, weights in watched]
    [('0', 'causal', (1, 2, 5, 5))]
    """
    parts = {name: x for name, x in module.named_modules() if isinstance(x, Attention)}
    if not parts:
        raise UserError(
            f"{type(module).__name__} holds no attention of the zoo; watch a module that does."
        )
    captured: list[CapturedAttention] = []
    with ExitStack() as stack:
        # Nothing can be compiled where this was not imported, which takes a second.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, attention in parts.items():
            stack.enter_context(
                attention.register_forward_pre_hook(capture_hook(name, captured), with_kwargs=True)
            )
        yield captured


def capture_hook(name: str, captured: list[CapturedAttention]) -> Callable[..., None]:
    """A hook that adds the weights of each call of an attention."""

    def watch(attention: Attention, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        options = dict(options)
        if options.pop("cache", None) is not None:
            raise Unsupported(
                "decoding with a cache cannot be watched: each call sees its own tokens only. "
                "Watch one pass over all that was written, without a cache."
            )
        weights = attention.attention_map(*inputs, **options)
        captured.append(CapturedAttention(name, attention.role, weights))

    return watch


def group_by_role(captured: Iterable[CapturedAttention]) -> Maps:
    """The weights [b h q k] of every layer under `encoder` (global self-attention), `decoder`
    (causal self-attention) and `cross`, as far as there are any."""
    maps: Maps = {}
    for role, part in PARTS.items():
        if layers := [weights for _, its, weights in captured if its == role]:
            maps[part] = layers
    return maps
