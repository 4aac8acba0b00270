"""Translation: an encoder-decoder generates the target from the source."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attention_zoo.capture import Maps
from attention_zoo.decoding.base import Hypothesis, Search
from attention_zoo.errors import UserError
from attention_zoo.models.seq2seq import Seq2Seq
from attention_zoo.tasks.data.batches import IGNORE_INDEX, TranslationBatch
from attention_zoo.tasks.data.translation_data import LENGTH_FACTOR, max_source_tokens
from attention_zoo.tasks.training.metrics import (
    ChrF,
    ExactMatch,
    SacreBleu,
    default_bleu_tokenizer,
)
from attention_zoo.tasks.training.ranks import gather_outputs
from attention_zoo.tasks.training.task import Task, check_texts
from attention_zoo.tasks.views.attention_record import AttentionRecord, first_example
from attention_zoo.tasks.views.attention_viewer.page import AttentionView

# The most of a batch that is decoded; tokens are those of the sources, with padding.
DECODED_SENTENCES, DECODED_TOKENS = 64, 4096


class TranslationTask(Task):
    """A task that trains by teacher forcing and scores translations: BLEU, chrF, exact match.

    Args:
        bleu_tokenizer: sacreBLEU's tokenizer of the target language; by default that of the data.
        options: of `Task`.
    """

    model: Seq2Seq
    sample_columns = ("source", "translation")

    def __init__(self, *, bleu_tokenizer: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(self.decoding, Search):
            raise UserError(
                "a translation needs decoding=greedy or decoding=beam, got "
                f"{type(self.decoding).__name__}."
            )
        self.bleu_tokenizer = bleu_tokenizer
        self.bleu, self.chrf, self.exact_match = SacreBleu(), ChrF(), ExactMatch()
        if bleu_tokenizer is not None:
            try:
                self.bleu = SacreBleu(tokenize=bleu_tokenizer)
            except UserError as error:
                raise UserError(f"task.bleu_tokenizer={bleu_tokenizer}: {error}") from None
        max_tokens = self.config.get("data", {}).get("max_tokens")
        self.max_source_tokens = None if max_tokens is None else max_source_tokens(max_tokens)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.bleu_tokenizer is None:
            # A data module of a user's own need not have a source.
            source = getattr(self.trainer.datamodule, "source", None)  # type: ignore[attr-defined]
            language = getattr(source, "target_language", None)
            self.bleu = SacreBleu(tokenize=default_bleu_tokenizer(language)).to(self.device)

    def call_model(self, batch: TranslationBatch, **options: Any) -> Tensor:
        return self.model(batch.source, batch.target[:, :-1], **options)

    def find_targets(self, batch: TranslationBatch) -> Tensor:
        targets = batch.target[:, 1:]
        return targets.masked_fill(targets == self.tokenizer.pad_id, IGNORE_INDEX)

    def on_validation_epoch_end(self) -> None:
        if self.generates_in_validation:
            self.outputs = gather_outputs(self.trainer, self.outputs)

    def on_test_epoch_end(self) -> None:
        self.outputs = gather_outputs(self.trainer, self.outputs)

    def score(self, batch: TranslationBatch, split: str) -> None:
        super().score(batch, split)
        if split == "val" and not self.generates_in_validation:
            return
        hypotheses = [self.tokenizer.decode(best.tokens) for best, *_ in self.decode(batch.source)]
        # The references are the lines themselves: the tokenizer may not know all of their text.
        lines = getattr(self.trainer.datamodule, {"val": "valid"}.get(split, split))  # type: ignore[attr-defined]
        line_numbers = batch.index.tolist()
        references = [lines[number][1] for number in line_numbers]
        self.outputs.update(zip(line_numbers, hypotheses, strict=True))
        for name in ("bleu", "chrf", "exact_match"):
            metric = getattr(self, name)
            metric.update(hypotheses, references, batch.index)
            self.log(f"{split}/{name}", metric, on_epoch=True, on_step=False)

    def metric_signatures(self) -> dict[str, Any]:
        if not self.outputs:
            return {}
        return {"sacrebleu_signature": self.bleu.signature, "chrf_signature": self.chrf.signature}

    def decode(self, source: Tensor) -> list[list[Hypothesis]]:
        """Return the hypotheses for each row of source tokens [b s], best first.

        A row that is longer than `max_source_tokens` is translated up to there.
        """
        limit = self.max_source_tokens
        if limit is not None and source.shape[1] > limit:
            source = source[:, :limit].clone()
            is_cut = source[:, -1] != self.tokenizer.pad_id
            source[is_cut, -1] = self.tokenizer.eos_id
        mask = source != self.tokenizer.pad_id
        return self.decoding(self.model, source, mask, **self.special_ids())

    def source_tokens(self, lines: list[str]) -> Tensor:
        """Return lines as tokens [b s], each with eos at its end and padding after that."""
        rows = [torch.tensor([*self.tokenizer.encode(x), self.tokenizer.eos_id]) for x in lines]
        source = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_id)
        return source.to(self.device)

    def hypotheses(self, lines: list[str]) -> list[list[tuple[str, float]]]:
        """Return texts and scores for each line, best first; of a line without text, empty ones.

        Lines of like length are decoded together.
        """
        empty = [("", 0.0)] * getattr(self.decoding, "n_best", 1)
        found = [empty] * len(lines)
        numbers = [number for number, line in enumerate(lines) if line.strip()]
        if not numbers:
            return found
        source = self.source_tokens([lines[number] for number in numbers])
        lengths = (source != self.tokenizer.pad_id).sum(1).tolist()
        for rows in batch_by_length(lengths):
            decoded = self.decode(source[rows, : lengths[rows[0]]])
            for row, hypotheses in zip(rows, decoded, strict=True):
                found[numbers[row]] = [
                    (self.tokenizer.decode(x.tokens), x.score) for x in hypotheses
                ]
        return found

    def describe_troubles(self, line: str) -> dict[str, str]:
        troubles = super().describe_troubles(line)
        tokens, limit = len(self.tokenizer.encode(line)) + 1, self.max_source_tokens
        if limit is not None and tokens > limit:
            troubles[f"are longer than {limit:,} tokens"] = (
                f"has {tokens:,} tokens, of which the first {limit:,} are translated "
                f"({LENGTH_FACTOR} * data.max_tokens); give a sentence a line"
            )
        return troubles

    def generate(self, lines: list[str]) -> list[str]:
        check_texts(lines)
        return [hypotheses[0][0] for hypotheses in self.hypotheses(lines)]

    def attention_maps(self, batch: TranslationBatch) -> Iterator[Maps]:
        pad = self.tokenizer.pad_id
        for source, target in zip(batch.source, batch.target, strict=True):
            inputs = target[target != pad][:-1]
            yield self.model.attention_maps(source[source != pad][None], inputs[None])

    @torch.inference_mode()
    def attend(self, line: str) -> AttentionRecord:
        source = self.source_tokens([line])
        output = self.decode(source)[0][0].tokens
        target = torch.tensor([[self.tokenizer.bos_id, *output]], device=self.device)
        maps = self.model.attention_maps(source, target)
        target_tokens = [*self.tokenizer.tokens(output), "<eos>"]
        return AttentionView(
            source_tokens=[*self.tokenizer.tokens(source[0, :-1].tolist()), "<eos>"],
            # Row i is the attention from which the decoder predicted token i.
            target_tokens=target_tokens,
            maps=first_example(maps),
            source=line,
            target=self.tokenizer.decode(output),
            decoder_input_tokens=["<bos>", *target_tokens[:-1]],
        )


def batch_by_length(lengths: list[int]) -> Iterator[list[int]]:
    """Yield the rows to decode together, by their lengths in tokens, longest first."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        count = max(1, min(DECODED_SENTENCES, DECODED_TOKENS // lengths[order[0]]))
        yield order[:count]
        del order[:count]
