"""Sampling: tokens drawn at random from the model's distribution."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attention_zoo.decoding.base import (
    check_finite,
    check_model,
    check_special_ids,
    check_vocabulary,
    create_cache,
)
from attention_zoo.errors import UserError, check_positive, short_repr
from attention_zoo.factory import typed_options
from attention_zoo.models import LanguageModel

LOWEST_TEMPERATURE = 1e-6  # below it, logits by temperature may be infinite


class Sample:
    """Ancestral sampling from a language model: y_t ~ p(y | y_<t).

    p = softmax(logits / temperature), cut to the top_k likeliest tokens, then to the smallest set
    of likeliest tokens with mass >= top_p (nucleus sampling, Holtzman et al. 2020,
    arXiv:1904.09751), and each time normalised to a sum of 1. A row ends at eos, or at bos, which
    begins the next document. pad is never drawn. A model with a `max_length` reads the last
    max_length tokens.

    Args:
        temperature: 0 takes the likeliest token (greedy), 1 the model's own distribution; else
            at least 1e-6.
        top_k: number of tokens to draw from; None for all.
        top_p: mass to draw from, in (0, 1]; None for all.
        max_tokens: the most new tokens for each prompt.
        seed: the same seed, prompts and device give the same text; None draws from torch's global
            generator.

    Raises:
        UserError: an option of another type or out of its range, an empty prompt, a model in
            training mode or with NaN logits.
    """

    @typed_options
    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        max_tokens: int = 200,
        seed: int | None = None,
    ) -> None:
        if temperature != 0 and temperature < LOWEST_TEMPERATURE:
            raise UserError(
                f"temperature must be 0, or {LOWEST_TEMPERATURE} or more, got {temperature=}; "
                "0 takes the likeliest token, 1 the model's own distribution."
            )
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k must be at least 1, or null for all tokens, got {top_k=}.")
        if top_p is not None and not 0 < top_p <= 1:
            raise UserError(
                f"top_p must be above 0 and at most 1, or null for all tokens, got {top_p=}."
            )
        check_positive(max_tokens=max_tokens)
        if seed is not None and not -(2**63) <= seed < 2**64:
            raise UserError(f"seed must be a number of 64 bits, got {seed}.")
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.max_tokens = max_tokens
        self.seed = seed

    def __call__(
        self, model: LanguageModel, prompts: Sequence[Sequence[int]], **special_ids: int
    ) -> list[list[int]]:
        """Continue each prompt, as `stream` does.

        Returns:
            The new tokens of each row, without the prompt and without eos.
        """
        steps = list(self.stream(model, prompts, **special_ids))
        rows = torch.stack(steps, 1).tolist() if steps else [[] for _ in prompts]
        return [[token for token in row if token != special_ids["pad_id"]] for row in rows]

    @torch.inference_mode()
    def stream(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        bos_id: int,
        eos_id: int,
        pad_id: int,
    ) -> Iterator[Tensor]:
        """Continue each prompt token by token.

        Yields tokens [b] as soon as they are drawn, until all rows have ended. Rows that have ended
        have pad_id.

        Args:
            model: the model, in evaluation mode.
            prompts: token ids, b lists of at least one; begin them with bos if the model was
                trained so.
            bos_id: the token that begins a document.
            eos_id: the token that ends it.
            pad_id: the token that fills up rows.
        """
        check_model(model, encodes=False)
        check_special_ids(bos_id=bos_id, eos_id=eos_id, pad_id=pad_id)
        check_prompts(prompts)
        device = next(model.parameters()).device
        rows = [torch.tensor(prompt, device=device) for prompt in prompts]
        pad_left = partial(pad_sequence, batch_first=True, padding_side="left")
        tokens = pad_left(rows, padding_value=pad_id)
        key_mask = pad_left([torch.ones_like(row, dtype=torch.bool) for row in rows])
        seed = self.seed
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        max_length = model.max_length
        cache = create_cache(model)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        for count in range(self.max_tokens):
            if max_length is not None and tokens.shape[1] > max_length:
                # A cache would still hold the tokens that are cut off.
                tokens, key_mask = tokens[:, -max_length:], key_mask[:, -max_length:]
                cache = create_cache(model)
            cached = 0 if cache is None else cache.length
            # Without a mask the model may take a faster path.
            mask = None if key_mask.all() else key_mask
            logits = model(tokens[:, cached:], key_mask=mask, cache=cache)[:, -1].float()
            check_vocabulary(logits.shape[1], bos_id=bos_id, eos_id=eos_id, pad_id=pad_id)
            logits[:, pad_id] = -torch.inf
            check_finite(logits.amax(-1), count + 1)
            drawn = self._draw_tokens(logits, generator)
            ended = ended | (drawn == eos_id) | (drawn == bos_id)
            if ended.all():
                return
            drawn = drawn.masked_fill(ended, pad_id)
            yield drawn
            tokens = torch.cat([tokens, drawn[:, None]], 1)
            key_mask = torch.cat([key_mask, key_mask.new_ones(len(prompts), 1)], 1)

    def _draw_tokens(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw a token id for each row of logits [b v]: [b]."""
        if self.temperature == 0:
            return logits.argmax(-1)
        vocabulary = logits.shape[1]
        values, ids = logits.topk(min(self.top_k or vocabulary, vocabulary))
        mass = torch.softmax(values / self.temperature, -1)
        # At 1 nothing is cut, so that rounding in the sum does not remove the rarest tokens.
        if self.top_p is not None and self.top_p < 1:
            before = mass.cumsum(-1) - mass
            mass = mass.masked_fill(before >= self.top_p, 0)
        return ids.gather(1, torch.multinomial(mass, 1, generator=generator)).squeeze(1)


def is_list(x: object) -> bool:
    """Return whether x is a list or a tuple, say, and no text."""
    return isinstance(x, Sequence) and not isinstance(x, str | bytes)


def check_prompts(prompts: Any) -> None:
    """Refuse what are not prompts of at least one token each."""
    if not is_list(prompts) or not all(map(is_list, prompts)):
        raise UserError(
            f"prompts must be lists of token ids, such as [[1, 5], [1]], got {short_repr(prompts)}."
        )
    if not prompts or not all(map(len, prompts)):
        raise UserError(
            "there must be at least one prompt, and at least one token in each; "
            "a prompt of bos alone lets the model begin."
        )
