"""Language modelling: predict each token from those before it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attention_zoo.capture import Maps
from attention_zoo.decoding import Sample
from attention_zoo.errors import UserError
from attention_zoo.models.language_model import LanguageModel
from attention_zoo.tasks.data.batches import LanguageBatch
from attention_zoo.tasks.training.metrics import LossByPlace, Share, TokenLoss
from attention_zoo.tasks.training.task import IGNORE_INDEX, Task, metric_name, token_losses
from attention_zoo.tasks.views.attention_record import AttentionRecord


class LanguageModelingTask(Task):
    """Learns next tokens; scored by loss, perplexity and bits per byte.

    Where the data ask questions, it learns their answers, and is scored by loss, accuracy (the
    share of right answers) and exact match (the share of sequences whose answers are all right).
    """

    model: LanguageModel
    decoding: Sample
    words = ("prompt", "continuation")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counters: dict[int, LossByPlace] = {}
        # Of the last test, by the length of its windows: see `LossByPlace`.
        self.by_place: dict[int, Tensor] = {}
        if not isinstance(self.decoding, Sample):
            raise UserError(
                "a language model writes with decoding=sample (decoding.temperature=0 takes the "
                f"likeliest token), got {type(self.decoding).__name__}."
            )

    def predict_batch(self, batch: LanguageBatch) -> tuple[Tensor, Tensor]:
        logits = self.model(batch.inputs, segment_ids=batch.segment_ids, places=batch.places)
        return logits, batch.targets

    def test_step(self, batch: LanguageBatch, _: int, dataloader_idx: int = 0) -> None:
        self.score(batch, self.trainer.datamodule.test_names[dataloader_idx])  # type: ignore[attr-defined]

    def score(self, batch: LanguageBatch, split: str) -> None:
        logits, targets = self.predict_batch(batch)
        losses, predicted = token_losses(logits, targets), targets != IGNORE_INDEX
        if batch.places is None:
            self.update_loss_metrics(losses, targets, split)
            length = split.partition("@")[2]
            if length.isdecimal():  # not sliding
                self.count_places(int(length), losses, predicted)
            return
        right = logits.argmax(-1) == targets
        self.update_metric(TokenLoss, metric_name("loss", split), losses.sum(), predicted.sum())
        self.update_metric(Share, metric_name("accuracy", split), right[predicted])
        self.update_metric(Share, metric_name("exact_match", split), (right == predicted).all(-1))

    def count_places(self, length: int, losses: Tensor, predicted: Tensor) -> None:
        """Add windows of a length, losses [b t] of what is predicted [b t], to `by_place`."""
        if length not in self.counters:
            self.counters[length] = LossByPlace(length).to(self.device)
        self.counters[length].update(losses, predicted)

    def on_test_epoch_start(self) -> None:
        self.counters = {}

    def on_test_epoch_end(self) -> None:
        self.by_place = {length: counter.compute() for length, counter in self.counters.items()}

    def prompts(self, lines: list[str]) -> list[list[int]]:
        """Each line as a document's beginning."""
        return [[self.tokenizer.bos_id, *self.tokenizer.encode(line)] for line in lines]

    def respond(self, lines: list[str]) -> list[str]:
        written = self.decoding(self.model, self.prompts(lines), **self.special_ids())
        return [self.tokenizer.decode(tokens) for tokens in written]

    def stream(self, line: str) -> Iterator[str]:
        """What `respond` gives for a line, piece by piece, as soon as its characters are whole."""
        tokens: list[int] = []
        told = ""
        for drawn in self.decoding.stream(self.model, self.prompts([line]), **self.special_ids()):
            tokens.append(int(drawn))
            text = self.tokenizer.decode(tokens)
            if not text.endswith("\ufffd"):  # A character may take several tokens.
                yield text[len(told) :]
                told = text
        yield self.tokenizer.decode(tokens)[len(told) :]

    def special_ids(self) -> dict[str, int]:
        ids = self.tokenizer
        return {"bos_id": ids.bos_id, "eos_id": ids.eos_id, "pad_id": ids.pad_id}

    def attention_maps(self, batch: LanguageBatch) -> Iterator[Maps]:
        for row, tokens in enumerate(batch.inputs):
            real = tokens != self.tokenizer.pad_id
            segment_ids = None if batch.segment_ids is None else batch.segment_ids[row][real][None]
            yield self.model.attention_maps(tokens[real][None], segment_ids=segment_ids)

    @torch.inference_mode()
    def attend(self, line: str) -> AttentionRecord:
        """The attention over a line."""
        tokens = self.prompts([line])[0]
        maps = self.model.attention_maps(torch.tensor([tokens], device=self.device))
        names = ["<bos>", *self.tokenizer.tokens(tokens[1:])]
        return AttentionRecord(
            source_tokens=names,
            target_tokens=names,
            maps={role: [layer[0].float().cpu() for layer in maps[role]] for role in maps},
            source=line,
        )
