"""Greedy search: the likeliest token at every step."""

import torch

from attention_zoo.decoding.base import Hypothesis, IncrementalDecoder, Search, check_finite


class Greedy(Search):
    """Greedy search: y_t = argmax p(y | y_<t, source), until eos.

    The score of an output is sum_t log p(y_t | y_<t, source), eos included. The default limits
    leave room for characters and bytes as well as for subwords.

    Args:
        max_ratio, max_extra: see `Search`.
    """

    def search(self, decoder: IncrementalDecoder) -> list[list[Hypothesis]]:
        source = decoder.source
        outputs: list[list[Hypothesis]] = [[] for _ in source]
        sentences = torch.arange(len(source), device=source.device)
        target = source.new_full((len(source), 1), decoder.bos_id)
        totals = torch.zeros(len(source), device=source.device)
        while len(sentences):
            best, tokens = decoder(target).max(-1)
            check_finite(best, target.shape[1])
            totals = totals + best
            target = torch.cat([target, tokens[:, None]], 1)
            ended = tokens == decoder.eos_id
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
                decoder.reorder(live)
        return outputs
