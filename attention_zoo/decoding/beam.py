"""The best of several hypotheses that grow side by side."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.decoding.base import (
    Hypothesis,
    Stepper,
    TranslationModel,
    check_finite,
    check_length,
)
from attention_zoo.errors import UserError


class Beam:
    """Beam search with length normalisation.

    At every step the `width` likeliest extensions of the live hypotheses survive; those that end
    in eos leave the beam (Sutskever et al. 2014, arXiv:1409.3215, section 3.2), so a beam of 1 is
    greedy search. An output y, eos included, is scored as in Wu et al. 2016 (arXiv:1609.08144,
    equation 14, without the coverage term):

        score(y) = log p(y | source) / ((5 + |y|) / 6) ** length_penalty

    The `n_best` best ended ones are kept. A sentence is over when no live hypothesis can pass the
    worst of them: as log p only falls, its score ends at most at log p / ((5 + limit) / 6) **
    length_penalty, with the longest length allowed. The defaults of width and penalty are those of
    Vaswani et al. 2017 (arXiv:1706.03762, section 6.1).

    Args:
        width: hypotheses that grow side by side.
        length_penalty: 0 compares plain log-probabilities, more of it favours longer outputs.
        n_best: outputs for each sentence, at most width.
        max_ratio: an output has at most max_ratio * source tokens + max_extra tokens, and no more
            than fit into the model's `max_length`; a hypothesis that reaches its limit ends there.
        max_extra: see max_ratio; in tokens.

    Raises:
        UserError: an option out of its range, a model in training mode or with NaN logits.
    """

    def __init__(
        self,
        *,
        width: int = 4,
        length_penalty: float = 0.6,
        n_best: int = 1,
        max_ratio: float = 2.0,
        max_extra: int = 50,
    ) -> None:
        if width < 1:
            raise UserError(f"width must be at least 1, got {width=}.")
        if not 1 <= n_best <= width:
            raise UserError(
                f"n_best must be at least 1 and at most width, got {n_best=}, {width=}; "
                f"widen the beam to have more outputs."
            )
        if length_penalty < 0:
            raise UserError(
                f"length_penalty must not be negative, got {length_penalty=}; 0 compares plain "
                "log-probabilities, which favours short outputs most."
            )
        check_length(max_ratio, max_extra)
        self.width = width
        self.length_penalty = length_penalty
        self.n_best = n_best
        self.max_ratio = max_ratio
        self.max_extra = max_extra

    def _divisor(self, length: int | Tensor) -> float | Tensor:
        return ((5 + length) / 6) ** self.length_penalty

    @torch.inference_mode()
    def __call__(
        self,
        model: TranslationModel,
        source: Tensor,
        key_mask: Tensor,
        *,
        bos_id: int,
        eos_id: int,
        pad_id: int,
    ) -> list[list[Hypothesis]]:
        """Translate a batch; each sentence comes out as it would alone.

        Args:
            source: token ids [b s].
            key_mask: [b s], True = a real token.

        Returns:
            For each sentence its n_best hypotheses, best first (fewer where there are no more).
        """
        step = Stepper(
            model,
            source,
            key_mask,
            bos_id=bos_id,
            eos_id=eos_id,
            pad_id=pad_id,
            max_ratio=self.max_ratio,
            max_extra=self.max_extra,
        )
        batch, device = len(source), source.device
        found: list[list[Hypothesis]] = [[] for _ in source]
        sentences = torch.arange(batch, device=device)
        # Live: [b w t] and [b w], beginning with one beam; kept: [b n t] and [b n].
        target = source.new_full((batch, 1, 1), bos_id)
        totals = torch.zeros(batch, 1, device=device)
        kept = source.new_empty(batch, self.n_best, 0)
        kept_scores = torch.full((batch, self.n_best), -torch.inf, device=device)
        while len(sentences):
            beams, length = target.shape[1:]
            scores = step(target.flatten(0, 1)).unflatten(0, (-1, beams))
            vocabulary = scores.shape[2]
            extended = (totals[..., None] + scores).flatten(1)
            totals, picks = extended.topk(min(self.width, extended.shape[1]))
            check_finite(totals[:, 0], length)
            parents, tokens = picks // vocabulary, picks % vocabulary
            target = torch.cat([_rows(target, parents), tokens[..., None]], 2)

            ended = tokens == eos_id
            ended_scores = (totals / self._divisor(length)).masked_fill(~ended, -torch.inf)
            kept_scores, best = torch.cat([kept_scores, ended_scores], 1).topk(self.n_best)
            kept = _rows(torch.cat([F.pad(kept, (0, 1), value=pad_id), target[..., 1:]], 1), best)

            totals = totals.masked_fill(ended, -torch.inf)
            longest = step.limits.unflatten(0, (-1, beams))[:, 0] + 1
            over = totals.amax(1) / self._divisor(longest) <= kept_scores[:, -1]
            rows = torch.arange(len(sentences), device=device)[:, None] * beams + parents
            if over.any():
                for sentence, outputs, values in zip(
                    sentences[over].tolist(),
                    kept[over].tolist(),
                    kept_scores[over].tolist(),
                    strict=True,
                ):
                    found[sentence] = [
                        Hypothesis(output[: output.index(eos_id)], value)
                        for output, value in zip(outputs, values, strict=True)
                        if value > -torch.inf
                    ]
                go_on = ~over
                sentences, target, totals = sentences[go_on], target[go_on], totals[go_on]
                kept, kept_scores = kept[go_on], kept_scores[go_on]
                step.select(rows[go_on].flatten())
            elif rows.shape[1] != beams:
                step.select(rows.flatten())
            else:
                step.reorder(rows.flatten())
        return found


def _rows(sequences: Tensor, index: Tensor) -> Tensor:
    """Of sequences [b m t] those of the index [b n]: [b n t]."""
    return sequences.gather(1, index[..., None].expand(-1, -1, sequences.shape[2]))
