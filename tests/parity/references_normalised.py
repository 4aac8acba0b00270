"""Ways from scores to weights, against transformers, torch, entmax, x-transformers and fla."""

import warnings
from collections.abc import Callable

import entmax as package
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

from attention_zoo import create_attention
from attention_zoo.attention.base import Attention
from tests.parity.compared import Outcome, fla, outcome, parity

with warnings.catch_warnings():
    # It scripts functions, which torch is about to give up.
    warnings.simplefilter("ignore", DeprecationWarning)
    from x_transformers.attend import Attend

DIM, HEADS, KV_HEADS, LENGTH = 32, 4, 2, 19


def inputs() -> Tensor:
    """Longer than usual, so that weights are far from equal."""
    return (3.0 * torch.randn(2, LENGTH, DIM)).requires_grad_()


def draw(*parameters: nn.Parameter) -> None:
    """Away from zero, where they start."""
    for parameter in parameters:
        nn.init.normal_(parameter)


def heads_of(ours: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return ours.project_query(x), *ours.project_key_value(x)


def both(ours: Attention, x: Tensor, theirs: Callable[..., Tensor]) -> tuple[Outcome, Outcome]:
    """Our attention, and theirs of our heads: it turns q, k and v [b h t c] into [b h t c]."""
    leaves = [x, *ours.parameters()]
    expected = ours.project_output(theirs(*heads_of(ours, x)), x)
    return outcome(ours(x), leaves), outcome(expected, leaves)


@parity("attention_sink", "transformers GptOssAttention")
def attention_sink() -> tuple[Outcome, Outcome]:
    sizes = {"dim": DIM, "heads": HEADS, "kv_heads": KV_HEADS}
    ours = create_attention("attention_sink", role="causal", bias=True, **sizes)
    config = GptOssConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=DIM // HEADS,
        attn_implementation="eager",
    )
    theirs = GptOssAttention(config, layer_idx=0)
    for part, other in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
        getattr(theirs, f"{other}_proj").load_state_dict(getattr(ours, part).state_dict())
    draw(ours.sinks)
    with torch.no_grad():
        theirs.sinks.copy_(ours.sinks)
    x = inputs()
    future = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)[None, None]
    unturned = torch.ones(1, LENGTH, DIM // HEADS // 2), torch.zeros(1, LENGTH, DIM // HEADS // 2)
    expected, _ = theirs(x, unturned, future)
    return (
        outcome(ours(x), [x, ours.sinks, ours.key.weight]),
        outcome(expected, [x, theirs.sinks, theirs.k_proj.weight]),
    )


@parity("off_by_one", "torch.nn.MultiheadAttention with add_zero_attn")
def off_by_one() -> tuple[Outcome, Outcome]:
    """A key of zeros has the score 0, which is the 1 in the denominator."""
    ours = create_attention("off_by_one", dim=DIM, heads=HEADS, role="causal")
    theirs = nn.MultiheadAttention(DIM, HEADS, bias=False, add_zero_attn=True, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(
            torch.cat([ours.query.weight, ours.key.weight, ours.value.weight])
        )
        theirs.out_proj.weight.copy_(ours.output.weight)
    x = inputs()
    future = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    expected, _ = theirs(x, x, x, attn_mask=future)
    return (
        outcome(ours(x), [x, ours.output.weight]),
        outcome(expected, [x, theirs.out_proj.weight]),
    )


def by_mapping(mapping: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Causal attention by a mapping of scores, which are finite where a key is not visible."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        future = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        return mapping(scores.masked_fill(future, -100.0)) @ v

    return attend


@parity("sparsemax", "entmax sparsemax")
def sparsemax() -> tuple[Outcome, Outcome]:
    ours = create_attention("sparsemax", dim=DIM, heads=HEADS, role="causal")
    return both(ours, inputs(), by_mapping(package.sparsemax))


@parity("entmax15", "entmax entmax15")
def entmax15() -> tuple[Outcome, Outcome]:
    ours = create_attention("entmax15", dim=DIM, heads=HEADS, role="causal")
    return both(ours, inputs(), by_mapping(package.entmax15))


@parity("entmax", "entmax entmax_bisect")
def entmax() -> tuple[Outcome, Outcome]:
    """With α from 1.27 to 1.88, in float64: theirs divides a difference by (α − 1)²."""
    ours = create_attention("entmax", dim=DIM, heads=HEADS, role="causal").double()
    with torch.no_grad():
        ours.shape.copy_(torch.linspace(-1.0, 2.0, HEADS))

    def mapping(scores: Tensor) -> Tensor:
        alpha = 1 + ours.shape.sigmoid()[:, None, None]
        return package.entmax_bisect(scores, alpha.expand(*scores.shape[:-1], 1))

    return both(ours, inputs().detach().double().requires_grad_(), by_mapping(mapping))


@parity("top_k", "x-transformers Attend with sparse_topk")
def top_k() -> tuple[Outcome, Outcome]:
    """The first queries see fewer keys than k."""
    ours = create_attention("top_k", dim=DIM, heads=HEADS, top_k=5, role="causal")
    attend = Attend(causal=True, heads=HEADS, sparse_topk=5)
    return both(ours, inputs(), lambda *heads: attend(*heads)[0])


@parity("selective", "x-transformers Attend with selective")
def selective() -> tuple[Outcome, Outcome]:
    ours = create_attention("selective", dim=DIM, heads=HEADS, role="causal")
    attend = Attend(causal=True, heads=HEADS, selective=True)
    return both(ours, inputs(), lambda *heads: attend(*heads)[0])


@parity("forgetting", "flash-linear-attention naive_forgetting_attn")
def forgetting() -> tuple[Outcome, Outcome]:
    sizes = {"dim": DIM, "heads": HEADS, "kv_heads": KV_HEADS}
    ours = create_attention("forgetting", role="causal", **sizes)
    x = inputs()

    def attend(*heads: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in heads)
        gates = logsigmoid(ours.forget(x))
        expected = fla("forgetting_attn").naive_forgetting_attn(q, k, v, gates)
        return expected.transpose(1, 2)

    return both(ours, x, attend)


@parity("stick_breaking", "flash-linear-attention naive_stickbreaking_attn")
def stick_breaking() -> tuple[Outcome, Outcome]:
    sizes = {"dim": DIM, "heads": HEADS, "kv_heads": KV_HEADS}
    ours = create_attention("stick_breaking", role="causal", **sizes)

    def attend(*heads: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in heads)
        naive = fla("stickbreaking_attn").naive_stickbreaking_attn
        return naive(q, k, v, attend_current=True)[0].transpose(1, 2)

    return both(ours, inputs(), attend)
