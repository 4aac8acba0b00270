"""Greedy search: the likeliest token at every step."""

import torch
from torch import Tensor

from attention_zoo.decoding.base import (
    Hypothesis,
    IncrementalDecoder,
    TranslationModel,
    check_finite,
    check_length_limits,
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
        check_length_limits(max_ratio, max_extra)
        self.max_ratio = max_ratio
        self.max_extra = max_extra

    @torch.inference_mode()
    def __call__(
        self,
        model: TranslationModel,
        source: Tensor,
        source_mask: Tensor,
        *,
        bos_id: int,
        eos_id: int,
        pad_id: int,
    ) -> list[list[Hypothesis]]:
        """Translate a batch; each sentence has the output that it would have alone.

        Args:
            model: the model, in evaluation mode.
            source: token ids [b s].
            source_mask: [b s], True at real tokens.
            bos_id: the token that begins a target.
            eos_id: the token that ends it.
            pad_id: the token that fills up rows.

        Returns:
            For each sentence a list of one hypothesis.
        """
        decoder = IncrementalDecoder(
            model,
            source,
            source_mask,
            bos_id=bos_id,
            eos_id=eos_id,
            pad_id=pad_id,
            max_ratio=self.max_ratio,
            max_extra=self.max_extra,
        )
        outputs: list[list[Hypothesis]] = [[] for _ in source]
        sentences = torch.arange(len(source), device=source.device)
        target = source.new_full((len(source), 1), bos_id)
        totals = torch.zeros(len(source), device=source.device)
        while len(sentences):
            best, tokens = decoder(target).max(-1)
            check_finite(best, target.shape[1])
            totals = totals + best
            target = torch.cat([target, tokens[:, None]], 1)
            ended = tokens == eos_id
            if ended.any():
                for sentence, output, score in zip(
                    sentences[ended].tolist(),
                    target[ended, 1:-1].tolist(),
                    totals[ended].tolist(),
                    strict=True,
                ):
                    outputs[sentence] = [Hypothesis(output, score)]
                live = (~ended).nonzero().squeeze(1)
                sentences, target, totals = sentences[live], target[live], totals[live]
                decoder.select(live)
        return outputs
