"""Misuse of the library is answered by one line that names the rule, never by an error of torch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_zoo import Unsupported, UserError, create_attention, create_position
from attention_zoo.attention.base import Attention
from attention_zoo.caches import TokenCache
from attention_zoo.capture import capture_attention
from attention_zoo.lookup import soft_lookup
from attention_zoo.masks import Mask
from attention_zoo.models import LanguageModel, Seq2Seq
from attention_zoo.position.base import PositionalEncoding

DIM, HEADS, LENGTH = 8, 2, 5
META = torch.device("meta")


def attention(name: str = "multi_head", role: str = "causal", **options: Any) -> Attention:
    return create_attention(name, **{"dim": DIM, "heads": HEADS, "role": role} | options)


def encoding(name: str, **sizes: Any) -> PositionalEncoding:
    own: dict[str, Any] = {"dim": DIM, "heads": HEADS, "head_dim": DIM // HEADS, "role": "causal"}
    return create_position(name, **own | sizes)


def features(
    *shape: int, dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu"
) -> Tensor:
    """Of the type of the weights, which is the default type only while a test runs."""
    return torch.randn(*shape or (2, LENGTH, DIM), dtype=dtype, device=device)


def real(*shape: int) -> Tensor:
    return torch.ones(*shape or (2, LENGTH), dtype=torch.bool)


def ids(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def language_model(**options: Any) -> LanguageModel:
    own: dict[str, Any] = {
        "vocabulary_size": 11,
        "layers": 2,
        "dim": DIM,
        "ffn_dim": 16,
        "attention": partial(create_attention, "multi_head", heads=HEADS),
        "position": partial(create_position, "rotary"),
    }
    return LanguageModel(**own | options)


def seq2seq(**options: Any) -> Seq2Seq:
    factory = partial(create_attention, "multi_head", heads=HEADS)
    own: dict[str, Any] = {
        "vocabulary_size": 11,
        "pad_id": 0,
        "layers": 1,
        "dim": DIM,
        "ffn_dim": 16,
        "encoder_attention": factory,
        "decoder_attention": factory,
        "cross_attention": factory,
        "position": partial(create_position, "rotary"),
    }
    return Seq2Seq(**own | options)


def attend(
    *inputs: Any, name: str = "multi_head", role: str = "causal", **options: Any
) -> Callable[[], Tensor]:
    """A call of attention, by default with inputs that fit."""
    return lambda: attention(name, role)(*inputs or (features(),), **options)


def masked(**fields: Any) -> Callable[[], Tensor]:
    """A call with a mask, which may refuse to be made."""
    return lambda: attention()(features(), mask=Mask(**fields))


def attached(name: str, role: str = "causal", on: str = "multi_head", **sizes: Any) -> None:
    attention(on, role).attach_position(encoding(name, **sizes))


def attached_twice(name: str) -> None:
    first, second, own = attention(), attention(), encoding(name)
    first.attach_position(own)
    second.attach_position(own)


def with_cache(
    x: Tensor, *, cached: Tensor | None = None, of: Attention | None = None, **options: Any
) -> Tensor:
    """Decode x after cached tokens, with the cache of this attention or of another one."""
    own = attention()
    cache = (own if of is None else of).new_cache()
    if cached is not None:
        (own if of is None else of)(cached, cache=cache)
    return own(x, cache=cache, **options)


def always(module: torch.nn.Module) -> Callable[..., torch.nn.Module]:
    """A factory that builds nothing."""
    return lambda **_: module


MISUSE: dict[str, tuple[Callable[[], Any], type[UserError], str]] = {
    # Masks.
    "float key mask": (masked(key_mask=real().float()), UserError, r"by mask\.bool\(\)"),
    "half key mask": (masked(key_mask=real().half()), UserError, "must be boolean"),
    "long key mask": (masked(key_mask=real().long()), UserError, "True at real keys"),
    "uint8 key mask": (masked(key_mask=real().byte()), UserError, "got torch.uint8"),
    "additive key mask": (masked(key_mask=features(2, LENGTH)), UserError, "must be boolean"),
    "list as key mask": (masked(key_mask=[[True] * LENGTH] * 2), UserError, "got list"),
    "key mask of one axis": (masked(key_mask=real(LENGTH)), UserError, r"shape \[b k\], got \[5\]"),
    "key mask of queries and keys": (
        masked(key_mask=real(2, LENGTH, LENGTH)),
        UserError,
        r"\[b k\], got \[2, 5, 5\]",
    ),
    "key mask of another length": (masked(key_mask=real(2, 4)), UserError, "5 tokens, got 4"),
    "key mask of another batch": (masked(key_mask=real(3, LENGTH)), UserError, "2 sequences, .* 3"),
    "key mask on another device": (
        masked(key_mask=real().to(META)),
        UserError,
        "device of the inputs, cpu, got meta",
    ),
    "tensor as mask": (attend(mask=real()), UserError, "must be a Mask, .* torch.bool"),
    "none as mask": (attend(mask=None), UserError, "must be a Mask, .* NoneType"),
    "window of 0": (masked(window=0), UserError, "window must be at least 1, got 0"),
    "negative window": (masked(window=-3), UserError, "window must be at least 1, got -3"),
    "float window": (masked(window=2.0), UserError, "window must be a whole number, got 2.0"),
    "bool window": (masked(window=True), UserError, "window must be a whole number, got True"),
    "tensor as causal": (masked(causal=real()), UserError, "causal must be True or False"),
    "number as causal": (masked(causal=1), UserError, "causal must be True or False, got 1"),
    "float segment ids": (masked(segment_ids=features(2, 5)), UserError, r"by \.long\(\)"),
    "segment ids of one axis": (masked(segment_ids=ids([0] * 5)[0]), UserError, r"\[b t\]"),
    "segment ids of another length": (masked(segment_ids=ids([0] * 4)), UserError, "5 tokens"),
    "segment that goes on": (
        masked(segment_ids=ids([0] * 5, [0, 1, 1, 0, 0])),
        UserError,
        "in row 1 the sequence 0 goes on after another",
    ),
    "padded segment that goes on": (
        masked(segment_ids=ids([0, 1, 0, 2, 2]), key_mask=real(1, 5)),
        UserError,
        "in row 0 the sequence 0 goes on",
    ),
    "segment ids of queries alone": (
        masked(query_segment_ids=ids([0] * 5)),
        UserError,
        "compared with segment_ids",
    ),
    "parts of other batches": (
        masked(segment_ids=ids([0] * 5, [0] * 5), key_mask=real(3, 5)),
        UserError,
        "key_mask: 3, segment_ids: 2",
    ),
    "segment ids of queries in self-attention": (
        masked(segment_ids=ids([0] * 5), query_segment_ids=ids([0] * 5)),
        Unsupported,
        "cannot honour the mask query_segment_ids",
    ),
    "segment ids of keys alone in cross-attention": (
        attend(features(), features(), role="cross", mask=Mask(segment_ids=ids([0] * 5))),
        UserError,
        "need query_segment_ids",
    ),
    "causal mask in cross-attention": (
        attend(features(), features(), role="cross", mask=Mask(causal=True)),
        Unsupported,
        "cannot honour the mask causal",
    ),
    "mask that the card does not declare": (
        attend(name="linear", mask=Mask(window=2)),
        Unsupported,
        "linear as causal attention cannot honour the mask window",
    ),
    # Inputs.
    "context in self-attention": (attend(features(), features()), UserError, "takes no context"),
    "no context in cross-attention": (attend(role="cross"), UserError, "needs a context"),
    "x of two axes": (
        attend(features(LENGTH, DIM)),
        UserError,
        r"\[b t d\] with d=8, got \[5, 8\]",
    ),
    "x of four axes": (attend(features(1, 2, LENGTH, DIM)), UserError, r"\[b t d\] with d=8"),
    "x of another width": (attend(features(2, LENGTH, 6)), UserError, r"d=8, got \[2, 5, 6\]"),
    "x of numbers of tokens": (
        attend(real().long()[..., None].expand(2, 5, DIM)),
        UserError,
        "float",
    ),
    "list as x": (attend([[0.0] * DIM]), UserError, "x must be a tensor"),
    "float32 x": (attend(features(dtype=torch.float32)), UserError, "x is torch.float32 and the"),
    "half x": (attend(features(dtype=torch.float16)), UserError, "run under torch.autocast"),
    "x on another device": (
        attend(features(device=META)),
        UserError,
        "x is on meta and the weights",
    ),
    "context of another width": (
        attend(features(), features(2, 3, 6), role="cross"),
        UserError,
        "context must have the shape",
    ),
    "context of another batch": (
        attend(features(), features(3, 4, DIM), role="cross"),
        UserError,
        "as many rows, got 2 and 3",
    ),
    "context of another type": (
        attend(features(), features(dtype=torch.float32), role="cross"),
        UserError,
        "context is torch.float32",
    ),
    # Positions.
    "float positions": (attend(positions=torch.arange(5.0)[None]), UserError, "must be integers"),
    "bool positions": (attend(positions=real()), UserError, r"got a mask \(torch.bool\)"),
    "positions of one axis": (
        attend(positions=torch.arange(5)),
        UserError,
        r"\[b\|1 t\], got \[5\]",
    ),
    "positions of another length": (
        attend(positions=torch.arange(4)[None]),
        UserError,
        r"tokens \[2, 5\], got \[1, 4\]",
    ),
    "positions of another batch": (
        attend(positions=torch.arange(5).expand(3, 5)),
        UserError,
        r"tokens \[2, 5\], got \[3, 5\]",
    ),
    "positions on another device": (
        attend(positions=torch.arange(5, device=META)[None]),
        UserError,
        "positions must be on the device",
    ),
    "list as positions": (attend(positions=[0, 1, 2, 3, 4]), UserError, "got list"),
    "positions beyond a table": (
        lambda: encoding("learned", max_length=4).embed(features(), torch.arange(5)[None]),
        UserError,
        "max_length=4, got a sequence of 5 tokens",
    ),
    "negative positions in a table": (
        lambda: encoding("learned", max_length=9).embed(features(), torch.arange(5)[None] - 2),
        UserError,
        "at least 0, got -2",
    ),
    # Caches.
    "cache of another layer": (
        lambda: with_cache(features(), of=attention()),
        UserError,
        "cache must come from new_cache.* that of another",
    ),
    "cache of another mechanism": (
        lambda: with_cache(features(), of=attention("linear")),
        UserError,
        "cache must come from new_cache",
    ),
    "cache of another batch": (
        lambda: with_cache(features(2, 1, DIM), cached=features(3, 4, DIM)),
        UserError,
        "holds 3 sequences, got 2",
    ),
    "cache that nobody made": (attend(cache=TokenCache()), UserError, "cache must come from"),
    "dictionary as cache": (attend(cache={}), UserError, "got dict"),
    "cache of global attention": (
        lambda: attention(role="global").new_cache(),
        Unsupported,
        "sees the future",
    ),
    "cache of what has none": (
        lambda: create_attention("fourier", dim=DIM, role="global").new_cache(),
        Unsupported,
        "no cached decoding",
    ),
    "key mask of the newest token": (
        lambda: with_cache(
            features(2, 1, DIM), cached=features(2, 4, DIM), mask=Mask(key_mask=real(2, 1))
        ),
        UserError,
        "5 tokens, got 1",
    ),
    # Encodings.
    "absolute encoding on attention": (
        lambda: attached("sinusoidal"),
        Unsupported,
        "before a model",
    ),
    "learned encoding on attention": (
        lambda: attached("learned", max_length=9),
        Unsupported,
        "learned acts on embeddings",
    ),
    "absolute encoding by name": (
        lambda: attention(position="sinusoidal"),
        Unsupported,
        "before a model's layers",
    ),
    **{
        f"{name} embeddings of other shapes {number}": (
            lambda name=name, shapes=shapes: encoding(
                name, **({"max_length": 9} if name == "learned" else {})
            ).embed(features(*shapes[0]), torch.zeros(shapes[1], dtype=torch.long)),
            UserError,
            rf"position={name} adds to embeddings \[b t 8\]",
        )
        for name in ("sinusoidal", "learned")
        for number, shapes in enumerate(
            [
                ((2, 5, 1), (1, 5)),
                ((2, 5, 8), (5,)),
                ((2, 5, 8), (1, 1)),
                ((5, 8), (1, 5)),
                ((1, 5, 8), (2, 5)),
            ]
        )
    },
    "encoding of one head": (lambda: attached("alibi", heads=1), UserError, "heads=1, .* heads=2"),
    "encoding of another head width": (
        lambda: attached("rotary", head_dim=8),
        UserError,
        "head_dim=8, .* head_dim=4",
    ),
    "encoding of another width": (lambda: attached("shaw", dim=16), UserError, "dim=16, .* dim=8"),
    "causal encoding on global attention": (
        lambda: attached("alibi", "global"),
        UserError,
        "role=causal, .* role=global",
    ),
    "encoding of causal attention alone": (
        lambda: attached("xpos", "global"),
        Unsupported,
        "cannot serve global attention",
    ),
    "encoding on cross-attention": (
        lambda: attached("rotary", "cross"),
        Unsupported,
        "cross-attention",
    ),
    "encoding that the card does not take": (
        lambda: attached("alibi", on="linear"),
        Unsupported,
        "linear cannot take position=alibi",
    ),
    "one layer's encoding on two": (lambda: attached_twice("shaw"), UserError, "of its own"),
    "one layer's encoding shared": (
        lambda: attention().attach_position(encoding("fire"), shared=True),
        UserError,
        "would be shared",
    ),
    "name as encoding": (
        lambda: attention().attach_position("rotary"),  # type: ignore[arg-type]
        UserError,
        "takes an encoding, got str",
    ),
    "class as encoding": (
        lambda: attention().attach_position(PositionalEncoding),  # type: ignore[arg-type]
        UserError,
        "takes an encoding, got",
    ),
    # Names, roles and sizes.
    "unknown attention": (lambda: attention("multihead"), Unsupported, "Did you mean multi_head"),
    "unknown encoding": (lambda: encoding("rotery"), Unsupported, "Did you mean rotary"),
    "unknown role": (lambda: attention(role="encoder"), Unsupported, "cannot be encoder attention"),
    "no role": (lambda: attention(role=None), UserError, "role must be given, got None"),  # type: ignore[arg-type]
    "role that the card does not declare": (
        lambda: create_attention("fourier", dim=DIM, role="causal"),
        Unsupported,
        "fourier cannot be causal",
    ),
    "unknown option": (lambda: attention(headz=4), UserError, "has no option 'headz'"),
    "float width": (lambda: attention(dim=8.0), UserError, "dim must be a whole number, got 8.0"),
    "word as heads": (lambda: attention(heads="2"), UserError, "heads must be a whole number"),
    "bool heads": (lambda: attention(heads=True), UserError, "heads must be a whole number"),
    "no width": (lambda: attention(dim=0), UserError, "dim must be at least 1, got 0"),
    "width that heads do not divide": (lambda: attention(heads=3), UserError, "multiple of heads"),
    "negative head width": (
        lambda: attention(head_dim=-4),
        UserError,
        "head_dim must be at least 1",
    ),
    "word as bias": (lambda: attention(bias="yes"), UserError, "bias must be true or false"),
    "dropout of 1": (lambda: attention(dropout=1.0), UserError, "below 1, got 1.0"),
    "dropout that is no number": (
        lambda: attention(dropout=float("nan")),
        UserError,
        "dropout must be a finite number",
    ),
    "unknown backend": (lambda: attention(backend="flash"), Unsupported, "no backend 'flash'"),
    "base that is infinite": (
        lambda: encoding("rotary", base=float("inf")),
        UserError,
        "base must be a finite number",
    ),
    "odd head width": (lambda: encoding("rotary", head_dim=3), UserError, "even head width, got 3"),
    # Models.
    "float tokens": (
        lambda: language_model()(features(2, 5)),
        UserError,
        "tokens must be integers",
    ),
    "tokens of one axis": (
        lambda: language_model()(ids([1, 2])[0]),
        UserError,
        r"\[b t\], got \[2\]",
    ),
    "tokens outside the vocabulary": (
        lambda: language_model()(ids([1, 11])),
        UserError,
        "from 0 to 10, got 11",
    ),
    "negative tokens": (lambda: language_model()(ids([1, -100])), UserError, "got -100"),
    "float key mask of a model": (
        lambda: language_model()(ids([1, 2]), key_mask=torch.ones(1, 2)),
        UserError,
        "key_mask must be boolean",
    ),
    "cache of an attention for a model": (
        lambda: language_model()(ids([1, 2]), cache=attention().new_cache()),
        UserError,
        "new_cache.. of the model, got TokenCache",
    ),
    "cache of another model": (
        lambda: language_model()(ids([1, 2]), cache=language_model().new_cache()),
        UserError,
        "cache must come from new_cache",
    ),
    "attention as factory": (
        lambda: language_model(attention=attention()),
        UserError,
        "attention must be a factory, .* got MultiHeadAttention",
    ),
    "encoding as factory": (
        lambda: language_model(position=encoding("rotary")),
        UserError,
        "position must be a factory",
    ),
    "name as factory": (lambda: language_model(attention="linear"), UserError, "got 'linear'"),
    "no factory": (lambda: language_model(position=None), UserError, "got NoneType"),
    "one attention for all layers": (
        lambda: language_model(attention=always(attention())),
        UserError,
        "one for each layer",
    ),
    "attention of another role": (
        lambda: language_model(attention=lambda **_: attention(role="global")),
        UserError,
        "must build causal attention, .* got 'global'",
    ),
    "attention of another width": (
        lambda: language_model(attention=lambda **_: attention(dim=16))(ids([1, 2])),
        UserError,
        "d=16, got",
    ),
    "encoding of another role in a model": (
        lambda: language_model(position=lambda **_: encoding("alibi", role="global")),
        UserError,
        "role=global, .* role=causal",
    ),
    "one layer's encoding in a model": (
        lambda: language_model(position=always(encoding("shaw"))),
        UserError,
        "belongs to another attention",
    ),
    "option that a model does not have": (
        lambda: language_model(width=3),
        UserError,
        "the model has no option 'width'",
    ),
    "word as dropout": (lambda: language_model(dropout="high"), UserError, "dropout must be a fin"),
    "word as tie": (lambda: language_model(tie_embeddings="no"), UserError, "true or false"),
    "logits of tokens that are not there": (
        lambda: language_model()(ids([1, 2]), target_positions=ids([2])),
        UserError,
        "target_positions must be from 0 to 1, got 2",
    ),
    "logits by a mask": (
        lambda: language_model()(ids([1, 2]), target_positions=real(1, 2)),
        UserError,
        "target_positions must be integers",
    ),
    "segments of another length in a model": (
        lambda: language_model()(ids([1, 2]), segment_ids=ids([0, 0, 0])),
        UserError,
        "2 tokens, got 3",
    ),
    "float index of rows": (
        lambda: TokenCache().reorder(torch.tensor([0.0])),
        UserError,
        "index must be a tensor",
    ),
    "encoding instead of its name": (
        lambda: attention(position=encoding("rotary")),
        Unsupported,
        "There is no position RotaryEncoding",
    ),
    "number instead of a name": (lambda: attention(3), Unsupported, "There is no attention 3"),  # type: ignore[arg-type]
    "model without layers": (
        lambda: language_model(layers=0),
        UserError,
        "layers must be at least 1",
    ),
    "empty vocabulary": (
        lambda: language_model(vocabulary_size=0),
        UserError,
        "vocabulary_size must be at least 1",
    ),
    "padding outside the vocabulary": (
        lambda: seq2seq(pad_id=11),
        UserError,
        "pad_id must be a token",
    ),
    "source outside the vocabulary": (
        lambda: seq2seq()(ids([3, 99]), ids([1, 2])),
        UserError,
        "source must be from 0 to 10",
    ),
    "float source mask": (
        lambda: seq2seq().encode(ids([3, 4]), torch.ones(1, 2)),
        UserError,
        "key_mask must be boolean",
    ),
    # Beside attention.
    "nothing to capture": (
        lambda: capture_attention(torch.nn.Linear(2, 2)).__enter__(),
        UserError,
        "contains no attention",
    ),
    "module of another library": (
        lambda: capture_attention("model").__enter__(),  # type: ignore[arg-type]
        UserError,
        "captured in a module, got 'model'",
    ),
    "word as temperature": (
        lambda: soft_lookup({"a": 1}, "a", {"a": [1.0]}, temperature="1"),  # type: ignore[arg-type]
        UserError,
        "temperature must be a number above 0, got '1'",
    ),
    "index of rows of two axes": (
        lambda: TokenCache().reorder(torch.tensor([[0, 1]])),
        UserError,
        r"shape \[n\], got \[1, 2\]",
    ),
    "no input": (attend(None), UserError, "x must be a tensor .b t d., got NoneType"),
    "narrow tokens": (
        lambda: language_model()(ids([1, 2]).to(torch.uint8)),
        UserError,
        r"32 or 64 bits, got torch.uint8. Convert them by \.long",
    ),
    "truth value as cache of a model": (
        lambda: language_model()(ids([1, 2]), cache=True),
        UserError,
        "new_cache.. of the model, got bool",
    ),
    "truth value as a layer to read from": (
        lambda: language_model(share_kv=[None, False]),
        UserError,
        "an entry of share_kv must be a whole number, got False",
    ),
    "one layer to read from": (
        lambda: language_model(share_kv=0),
        UserError,
        "an entry for each of 2 layers, got 0",
    ),
    "factory of another signature": (
        lambda: language_model(attention=torch.nn.MultiheadAttention),
        UserError,
        "takes dim, role, layer by name: missing a required argument: 'embed_dim'",
    ),
    "no cross-attention": (
        lambda: seq2seq(cross_attention=None),
        UserError,
        "cross_attention must be a factory",
    ),
    "temperature of 0": (
        lambda: soft_lookup({"a": 1}, "a", {"a": [1.0]}, temperature=0.0),
        UserError,
        "temperature must be a number above 0",
    ),
}


@pytest.mark.parametrize("row", MISUSE.values(), ids=MISUSE.keys())
def test_misuse_is_one_clear_error(row: tuple[Callable[[], Any], type[UserError], str]) -> None:
    call, error, message = row
    with pytest.raises(UserError, match=message) as refused:
        call()
    assert type(refused.value) is error
    assert "\n" not in str(refused.value)
