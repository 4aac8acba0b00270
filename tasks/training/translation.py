"""Translation: an encoder-decoder writes the target, token by token, looking at the source."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attention_zoo.capture import Maps
from attention_zoo.decoding import Beam, Greedy
from attention_zoo.decoding.base import Hypothesis
from attention_zoo.errors import UserError
from attention_zoo.models.seq2seq import Seq2Seq
from attention_zoo.tasks.data.batches import TranslationBatch
from attention_zoo.tasks.training.metrics import ChrF, ExactMatch, SacreBleu
from attention_zoo.tasks.training.ranks import gathered
from attention_zoo.tasks.training.task import IGNORE_INDEX, Task
from attention_zoo.tasks.views.attention_record import AttentionRecord


class TranslationTask(Task):
    """Learns by teacher forcing, and is scored by what it writes: BLEU, chrF, exact match."""

    model: Seq2Seq
    words = ("source", "translation")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(self.decoding, Greedy | Beam):
            raise UserError(
                "a translation is written with decoding=greedy or decoding=beam, got "
                f"{type(self.decoding).__name__}."
            )
        self.bleu = SacreBleu()
        self.chrf = ChrF()
        self.exact_match = ExactMatch()

    def predict_batch(self, batch: TranslationBatch) -> tuple[Tensor, Tensor]:
        targets = batch.target[:, 1:]
        logits = self.model(batch.source, batch.target[:, :-1])
        return logits, targets.masked_fill(targets == self.tokenizer.pad_id, IGNORE_INDEX)

    def on_validation_epoch_start(self) -> None:
        self.outputs = {}

    def on_test_epoch_start(self) -> None:
        self.outputs = {}

    def on_validation_epoch_end(self) -> None:
        if self.writes_at_validation:
            self.outputs = gathered(self.trainer, self.outputs)

    def on_test_epoch_end(self) -> None:
        self.outputs = gathered(self.trainer, self.outputs)

    def validation_step(self, batch: TranslationBatch, index: int) -> None:
        super().validation_step(batch, index)
        if self.writes_at_validation:
            self.score_text(batch, "val")

    def test_step(self, batch: TranslationBatch, index: int) -> None:
        super().test_step(batch, index)
        self.score_text(batch, "test")

    def score_text(self, batch: TranslationBatch, split: str) -> None:
        """Scores of the translations that the model writes by itself."""
        written = [hypotheses[0].tokens for hypotheses in self.decode(batch.source)]
        hypotheses = [self.tokenizer.decode(tokens) for tokens in written]
        # The lines as they are: tokens may have lost what the tokenizer does not know.
        lines = getattr(self.trainer.datamodule, {"val": "valid"}.get(split, split))  # type: ignore[attr-defined]
        places = batch.index.tolist()
        references = [lines[place][1] for place in places]
        self.outputs.update(zip(places, hypotheses, strict=True))
        for name in ("bleu", "chrf", "exact_match"):
            metric = getattr(self, name)
            metric.update(hypotheses, references, batch.index)
            self.log(f"{split}/{name}", metric, on_epoch=True, on_step=False)

    def manifest(self) -> dict[str, Any]:
        if not self.outputs:
            return {}
        return {"sacrebleu_signature": self.bleu.signature, "chrf_signature": self.chrf.signature}

    def decode(self, source: Tensor) -> list[list[Hypothesis]]:
        """The hypotheses for each row of source tokens [b s], best first."""
        return self.decoding(
            self.model,
            source,
            source != self.tokenizer.pad_id,
            bos_id=self.tokenizer.bos_id,
            eos_id=self.tokenizer.eos_id,
            pad_id=self.tokenizer.pad_id,
        )

    def source_tokens(self, lines: list[str]) -> Tensor:
        """[b s], each line closed by eos and filled up."""
        rows = [torch.tensor([*self.tokenizer.encode(x), self.tokenizer.eos_id]) for x in lines]
        source = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_id)
        return source.to(self.device)

    def hypotheses(self, lines: list[str]) -> list[list[tuple[str, float]]]:
        """Texts and scores for each line, best first."""
        return [
            [(self.tokenizer.decode(one.tokens), one.score) for one in hypotheses]
            for hypotheses in self.decode(self.source_tokens(lines))
        ]

    def respond(self, lines: list[str]) -> list[str]:
        return [hypotheses[0][0] for hypotheses in self.hypotheses(lines)]

    def attention_maps(self, batch: TranslationBatch) -> Iterator[Maps]:
        pad = self.tokenizer.pad_id
        for source, target in zip(batch.source, batch.target, strict=True):
            real = target[target != pad]
            yield self.model.attention_maps(source[source != pad][None], real[None, :-1])

    @torch.inference_mode()
    def attend(self, line: str) -> AttentionRecord:
        """The attention over a line and its translation."""
        source = self.source_tokens([line])
        written = self.decode(source)[0][0].tokens
        target = torch.tensor([[self.tokenizer.bos_id, *written]], device=self.device)
        maps = self.model.attention_maps(source, target)
        target_tokens = [*self.tokenizer.tokens(written), "<eos>"]
        return AttentionRecord(
            source_tokens=[*self.tokenizer.tokens(source[0, :-1].tolist()), "<eos>"],
            # Row i shows where the decoder looked when it wrote token i.
            target_tokens=target_tokens,
            maps={role: [layer[0].float().cpu() for layer in maps[role]] for role in maps},
            source=line,
            target=self.tokenizer.decode(written),
            read_tokens=["<bos>", *target_tokens[:-1]],
        )
