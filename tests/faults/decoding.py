"""Faults of caches."""

from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor

from attention_zoo import caches
from attention_zoo.attention import base
from attention_zoo.attention.kernel import base as kernel
from attention_zoo.attention.local.compressed import CompressedCache
from attention_zoo.caches import StateCache, TokenCache
from attention_zoo.models import language_model
from tests.conformance import (
    test_caches,
    test_models,
    test_padding,
)
from tests.faults.planting import caught_by, plain


@caught_by(test_caches.test_chunks_are_one_pass, plain("multi_head", position="rotary"), [2, 9])
@caught_by(test_caches.test_chunks_are_one_pass, plain("additive", position="alibi"), [1] * 11)
def positions_not_advanced(patch: pytest.MonkeyPatch) -> None:
    resolve = base.resolve_positions
    patch.setattr(base, "resolve_positions", lambda x, positions, _=None: resolve(x, positions))


@caught_by(test_models.test_language_model_ignores_padding, "multi_head", "sinusoidal")
@caught_by(test_models.test_language_model_ignores_padding, "linear", "learned")
def places_count_padding(patch: pytest.MonkeyPatch) -> None:
    count = language_model.positions_in_row
    patch.setattr(language_model, "positions_in_row", lambda _, *rest: count(None, *rest))


@caught_by(test_models.test_language_model_keeps_packed_documents_apart, "multi_head", "sinusoidal")
def places_run_on_over_documents(patch: pytest.MonkeyPatch) -> None:
    count = language_model.positions_in_row
    patch.setattr(
        language_model,
        "positions_in_row",
        lambda key_mask, _, *rest: count(key_mask, None, *rest),
    )


@caught_by(test_caches.test_chunks_are_one_pass, plain("multi_head"), [5, 1, 1, 4])
@caught_by(test_caches.test_the_cache_is_as_large_as_its_attention_says, plain("grouped_query"))
@caught_by(test_models.test_seq2seq_decodes_in_chunks, "single_head", "none")
def later_keys_not_kept(patch: pytest.MonkeyPatch) -> None:
    append = TokenCache.append

    def forgetful(self: TokenCache, **tokens: Tensor) -> Any:
        before = self.tokens
        result = append(self, **tokens)
        self.tokens = before or self.tokens
        return result

    patch.setattr(TokenCache, "append", forgetful)


@caught_by(test_caches.test_context_is_read_once, plain("multi_head", "cross"))
def context_read_again(patch: pytest.MonkeyPatch) -> None:
    append = TokenCache.append

    def forgetful(self: TokenCache, **tokens: Tensor) -> Any:
        result = append(self, **tokens)
        self.tokens, self.length = {}, tokens["keys"].shape[-2]
        return result

    patch.setattr(TokenCache, "append", forgetful)


@caught_by(test_caches.test_chunks_are_one_pass, plain("linear"), [5, 1, 1, 4])
@caught_by(test_caches.test_reordering_continues_other_rows, plain("linear"), [1, 1])
def state_not_carried_on(patch: pytest.MonkeyPatch) -> None:
    product = kernel.causal_product
    patch.setattr(kernel, "causal_product", lambda q, k, v, _, __: product(q, k, v, None, None))


@caught_by(test_caches.test_reordering_continues_other_rows, plain("multi_head"), [1, 0])
@caught_by(test_caches.test_reordering_continues_other_rows, plain("linear"), [1, 1])
@caught_by(test_caches.test_reordering_the_context, plain("additive", "cross"), [1, 0])
@caught_by(test_models.test_seq2seq_decodes_in_chunks, "multi_head", "none")
def reordering_ignored(patch: pytest.MonkeyPatch) -> None:
    def as_many(kept: Tensor, index: Tensor) -> Tensor:
        return kept[torch.arange(len(index)) % len(kept)]

    def tokens(self: TokenCache, index: Tensor) -> None:
        self.tokens = {name: as_many(part, index) for name, part in self.tokens.items()}

    def states(self: StateCache, index: Tensor) -> None:
        if self.state is not None:
            self.state = tuple(as_many(part, index) for part in self.state)

    patch.setattr(TokenCache, "reorder", tokens)
    patch.setattr(StateCache, "reorder", states)


@caught_by(test_models.test_language_model_decodes_in_chunks, "multi_head", "alibi")
def reordering_forgets_positions(patch: pytest.MonkeyPatch) -> None:
    reorder = TokenCache.reorder

    def forgetful(self: TokenCache, index: Tensor) -> None:
        positions = self.tokens["positions"]
        reorder(self, index)
        self.tokens["positions"] = positions[torch.arange(len(index)) % len(positions)]

    patch.setattr(TokenCache, "reorder", forgetful)


@caught_by(test_caches.test_chunks_are_one_pass, plain("sliding_window"), [5, 1, 1, 4])
@caught_by(test_caches.test_the_cache_is_as_large_as_its_attention_says, plain("sliding_window"))
def windowed_cache_too_short(patch: pytest.MonkeyPatch) -> None:
    append = TokenCache.append

    def short(self: TokenCache, **tokens: Tensor) -> Any:
        result = append(self, **tokens)
        self.tokens = {name: part[..., -2:, :] for name, part in self.tokens.items()}
        return result

    patch.setattr(TokenCache, "append", short)


@caught_by(test_padding.test_a_state_leaves_padding_out, plain("sliding_window"), [9, 1, 1, 12])
@caught_by(
    test_padding.test_a_windowed_cache_leaves_padding_out, plain("multi_head"), [9, 1, 1, 12]
)
def windowed_cache_keeps_padding(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TokenCache, "_find_kept", lambda *_: None)


@caught_by(
    test_padding.test_a_whole_cache_leaves_padding_out_of_a_window, plain("multi_head"), [4, 19]
)
def cached_tokens_in_the_order_of_the_first_pass(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(caches, "gather_order", lambda x, *_: x)


@caught_by(test_caches.test_the_cache_is_as_large_as_its_attention_says, plain("sliding_window"))
def windowed_cache_keeps_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TokenCache, "select_kept", lambda _, part: part)


@caught_by(test_caches.test_reordering_continues_other_rows, plain("heavily_compressed"), [1, 0])
@caught_by(test_caches.test_reordering_continues_other_rows, plain("compressed_sparse"), [1, 1])
def entries_stay_in_their_rows(patch: pytest.MonkeyPatch) -> None:
    reorder = CompressedCache.reorder

    def reorder_tokens(self: CompressedCache, index: Tensor) -> None:
        entries, self.entries = self.entries, {}
        reorder(self, index)
        self.entries = {name: part[: len(index)] for name, part in entries.items()}

    patch.setattr(CompressedCache, "reorder", reorder_tokens)
