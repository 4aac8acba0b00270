"""Beam search: the best of several hypotheses that grow in parallel."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.decoding.base import Hypothesis, IncrementalDecoder, Search, check_finite
from attention_zoo.errors import UserError, check_positive
from attention_zoo.factory import typed_options

LARGEST_PENALTY = 10  # up to it, the powers of 40,000 tokens are in the range of float32


class Beam(Search):
    """Beam search with length normalisation.

    Each step keeps the `width` likeliest extensions of the live hypotheses. Those that end in eos
    leave the beam (Sutskever et al. 2014, arXiv:1409.3215, section 3.2), so a beam of 1 is greedy
    search. An output y, eos included, is scored as in Wu et al. 2016 (arXiv:1609.08144,
    equation 14, without the coverage term):

        score(y) = log p(y | source) / ((5 + |y|) / 6) ** length_penalty

    The `n_best` best finished hypotheses are kept. A sentence is done when no live hypothesis can
    pass the worst of them. As log p only falls, a live one ends with a score of at most
    log p / ((5 + limit) / 6) ** length_penalty, where limit is the longest length allowed. The
    defaults of width and penalty are those of Vaswani et al. 2017 (arXiv:1706.03762, section 6.1).

    Args:
        width: number of hypotheses that grow in parallel.
        length_penalty: 0 compares log-probabilities; larger values, up to 10, favour longer
            outputs.
        n_best: number of outputs for each sentence, at most width; a narrow beam may find fewer.
        limits: `max_ratio` and `max_extra`, see `Search`.

    Raises:
        UserError: an option out of its range.
    """

    @typed_options
    def __init__(
        self, *, width: int = 4, length_penalty: float = 0.6, n_best: int = 1, **limits: Any
    ) -> None:
        check_positive(width=width)
        if not 1 <= n_best <= width:
            raise UserError(
                f"n_best must be at least 1 and at most width, got {n_best=}, {width=}; "
                "widen the beam to have more outputs."
            )
        if length_penalty < 0:
            raise UserError(
                f"length_penalty must not be negative, got {length_penalty=}; 0 compares "
                "log-probabilities, which favours short outputs most."
            )
        if length_penalty > LARGEST_PENALTY:
            raise UserError(
                f"length_penalty must be at most {LARGEST_PENALTY}, got {length_penalty=}."
            )
        super().__init__(**limits)
        self.width = width
        self.length_penalty = length_penalty
        self.n_best = n_best

    def search(self, decoder: IncrementalDecoder) -> list[list[Hypothesis]]:
        source = decoder.source
        batch, device = len(source), source.device
        outputs: list[list[Hypothesis]] = [[] for _ in source]
        sentences = torch.arange(batch, device=device)
        # Live hypotheses: [b w t] and [b w], beginning with one; finished ones: [b n t] and [b n].
        target = source.new_full((batch, 1, 1), decoder.bos_id)
        totals = torch.zeros(batch, 1, device=device)
        finished = source.new_empty(batch, self.n_best, 0)
        finished_scores = torch.full((batch, self.n_best), -torch.inf, device=device)
        while len(sentences):
            beams, length = target.shape[1:]
            scores = decoder(target.flatten(0, 1)).unflatten(0, (-1, beams))
            vocabulary = scores.shape[2]
            extended = (totals[..., None] + scores).flatten(1)
            totals, picks = extended.topk(min(self.width, extended.shape[1]))
            check_finite(totals[:, 0], length)
            parents, tokens = picks // vocabulary, picks % vocabulary
            target = torch.cat([target.take_along_dim(parents[..., None], 1), tokens[..., None]], 2)

            ended = tokens == decoder.eos_id
            ended_scores = (totals / self._divisor(length)).masked_fill(~ended, -torch.inf)
            finished_scores, best = torch.cat([finished_scores, ended_scores], 1).topk(self.n_best)
            finished = F.pad(finished, (0, 1), value=decoder.pad_id)
            finished = torch.cat([finished, target[..., 1:]], 1)
            finished = finished.take_along_dim(best[..., None], 1)

            totals = totals.masked_fill(ended, -torch.inf)
            done = totals.amax(1) / self._divisor(decoder.limits + 1) <= finished_scores[:, -1]
            rows = torch.arange(len(sentences), device=device)[:, None] * beams + parents
            if done.any():
                for sentence, texts, values in zip(
                    sentences[done].tolist(),
                    finished[done].tolist(),
                    finished_scores[done].tolist(),
                    strict=True,
                ):
                    outputs[sentence] = [
                        Hypothesis(text[: text.index(decoder.eos_id)], value)
                        for text, value in zip(texts, values, strict=True)
                        if value > -torch.inf
                    ]
                live = ~done
                sentences, target, totals = sentences[live], target[live], totals[live]
                finished, finished_scores = finished[live], finished_scores[live]
                decoder.select(live.nonzero().squeeze(1))
                rows = rows[live]
            decoder.reorder(rows.flatten())
        return outputs

    def _divisor(self, length: int | Tensor) -> float | Tensor:
        return ((5 + length) / 6) ** self.length_penalty
