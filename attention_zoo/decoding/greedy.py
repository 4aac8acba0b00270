"""The likeliest token at every step."""

import torch
from torch import Tensor

from attention_zoo.decoding.base import (
    Hypothesis,
    Stepper,
    TranslationModel,
    check_finite,
    check_length,
)


class Greedy:
    """Greedy search: y_t = argmax p(y | y_<t, source), until eos.

    The score of an output is sum_t log p(y_t | y_<t, source), eos included. The default limits
    leave room for characters and bytes as well as for subwords.

    Args:
        max_ratio: an output has at most max_ratio * source tokens + max_extra tokens, and no more
            than fit into the model's `max_length`; a row that reaches its limit ends there.
        max_extra: see max_ratio; in tokens.

    Raises:
        UserError: the limits leave no room, the model is in training mode or gives NaN logits.
    """

    def __init__(self, *, max_ratio: float = 2.0, max_extra: int = 50) -> None:
        check_length(max_ratio, max_extra)
        self.max_ratio = max_ratio
        self.max_extra = max_extra

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
            For each sentence a list of one hypothesis.
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
        found: list[list[Hypothesis]] = [[] for _ in source]
        sentences = torch.arange(len(source), device=source.device)
        target = source.new_full((len(source), 1), bos_id)
        totals = torch.zeros(len(source), device=source.device)
        while len(sentences):
            best, tokens = step(target).max(-1)
            check_finite(best, target.shape[1])
            totals = totals + best
            target = torch.cat([target, tokens[:, None]], 1)
            ended = tokens == eos_id
            if ended.any():
                outputs = target[ended, 1:-1].tolist()
                for sentence, output, score in zip(
                    sentences[ended].tolist(), outputs, totals[ended].tolist(), strict=True
                ):
                    found[sentence] = [Hypothesis(output, score)]
                rows = (~ended).nonzero().squeeze(1)
                sentences, target, totals = sentences[rows], target[rows], totals[rows]
                step.select(rows)
        return found
