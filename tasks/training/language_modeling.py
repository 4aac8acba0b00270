"""Language modelling: predict each token from the tokens before it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attention_zoo.capture import Maps
from attention_zoo.decoding import Sample
from attention_zoo.errors import UserError
from attention_zoo.models.language_model import LanguageModel
from attention_zoo.tasks.data.batches import IGNORE_INDEX, LanguageBatch
from attention_zoo.tasks.training.losses import token_losses
from attention_zoo.tasks.training.metrics import Accuracy, LossByPosition, TokenLoss
from attention_zoo.tasks.training.task import Task, check_texts
from attention_zoo.tasks.views.attention_record import AttentionRecord, first_example
from attention_zoo.tasks.views.attention_viewer.page import AttentionView


class LanguageModelingTask(Task):
    """A task that predicts next tokens, scored by loss, perplexity and bits per byte.

    On data with queries it predicts their answers. The scores are then loss, accuracy (the share of
    right answers) and exact match (the share of sequences whose answers are all right).
    """

    model: LanguageModel
    decoding: Sample
    sample_columns = ("prompt", "continuation")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(self.decoding, Sample):
            raise UserError(
                "a language model needs decoding=sample (decoding.temperature=0 takes the "
                f"likeliest token), got {type(self.decoding).__name__}."
            )
        # By the length of the windows; the values are those of the last test.
        self.position_metrics: dict[int, LossByPosition] = {}
        self.loss_by_position: dict[int, Tensor] = {}

    def call_model(self, batch: LanguageBatch, **options: Any) -> Tensor:
        return self.model(
            batch.inputs,
            segment_ids=batch.segment_ids,
            target_positions=batch.target_positions,
            **options,
        )

    def find_targets(self, batch: LanguageBatch) -> Tensor:
        return batch.targets

    def on_test_epoch_start(self) -> None:
        self.position_metrics = {}

    def on_test_epoch_end(self) -> None:
        self.loss_by_position = {
            length: metric.compute() for length, metric in self.position_metrics.items()
        }

    def test_step(self, batch: LanguageBatch, _: int, dataloader_idx: int = 0) -> None:
        self.score(batch, self.trainer.datamodule.test_names[dataloader_idx])  # type: ignore[attr-defined]

    def score(self, batch: LanguageBatch, split: str) -> None:
        if batch.target_positions is None:
            losses, targets = self.token_losses(batch)
            self.update_loss_metrics(losses, targets, split)
            windows = split.partition("@")[2]
            if windows.isdecimal():  # not sliding
                length = int(windows)
                if length not in self.position_metrics:
                    self.position_metrics[length] = LossByPosition(length).to(self.device)
                self.position_metrics[length].update(losses, targets != IGNORE_INDEX)
            return
        logits, targets = self.predict_batch(batch)
        losses, is_target = token_losses(logits, targets), targets != IGNORE_INDEX
        right = logits.argmax(-1) == targets
        all_right = (right == is_target).all(-1)
        self.update_metric(TokenLoss, "loss", split, losses.sum(), is_target.sum())
        self.update_metric(Accuracy, "accuracy", split, right[is_target])
        self.update_metric(Accuracy, "exact_match", split, all_right)

    def prompts(self, lines: list[str]) -> list[list[int]]:
        """Return each line as the tokens of a document's beginning."""
        return [[self.tokenizer.bos_id, *self.tokenizer.encode(line)] for line in lines]

    def generate(self, lines: list[str]) -> list[str]:
        check_texts(lines)
        rows = self.decoding(self.model, self.prompts(lines), **self.special_ids())
        return [self.tokenizer.decode(tokens) for tokens in rows]

    def stream(self, line: str) -> Iterator[str]:
        """Yield what `generate` returns for a line, as soon as characters are complete."""
        tokens: list[int] = []
        yielded = ""
        for token in self.decoding.stream(self.model, self.prompts([line]), **self.special_ids()):
            tokens.append(int(token))
            text = self.tokenizer.decode(tokens)
            if not text.endswith("\ufffd"):  # A character may take several tokens.
                yield text[len(yielded) :]
                yielded = text
        yield self.tokenizer.decode(tokens)[len(yielded) :]

    def attention_maps(self, batch: LanguageBatch) -> Iterator[Maps]:
        for row, tokens in enumerate(batch.inputs):
            mask = tokens != self.tokenizer.pad_id
            segment_ids = None if batch.segment_ids is None else batch.segment_ids[row][mask][None]
            yield self.model.attention_maps(tokens[mask][None], segment_ids=segment_ids)

    @torch.inference_mode()
    def attend(self, line: str) -> AttentionRecord:
        tokens = self.prompts([line])[0]
        maps = self.model.attention_maps(torch.tensor([tokens], device=self.device))
        names = ["<bos>", *self.tokenizer.tokens(tokens[1:])]
        return AttentionView(names, names, first_example(maps), source=line)
