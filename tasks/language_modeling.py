"""Language modelling: predict each token from those before it."""

import torch
from torch import Tensor

from attention_zoo.models.language_model import LanguageModel
from attention_zoo.tasks.base import Task
from attention_zoo.tasks.data.batches import LanguageBatch
from attention_zoo.tasks.figures import AttentionReading


class LanguageModelingTask(Task):
    """Learns next tokens; scored by loss, perplexity and bits per byte."""

    model: LanguageModel

    def predict_batch(self, batch: LanguageBatch) -> tuple[Tensor, Tensor]:
        return self.model(batch.inputs, segments=batch.segments), batch.targets

    def prompts(self, lines: list[str]) -> list[list[int]]:
        """Each line as a document's beginning."""
        return [[self.tokenizer.bos_id, *self.tokenizer.encode(line)] for line in lines]

    def respond(self, lines: list[str]) -> list[str]:
        written = self.decoding(
            self.model,
            self.prompts(lines),
            bos_id=self.tokenizer.bos_id,
            eos_id=self.tokenizer.eos_id,
            pad_id=self.tokenizer.pad_id,
        )
        return [self.tokenizer.decode(tokens) for tokens in written]

    @torch.inference_mode()
    def attend(self, line: str) -> AttentionReading:
        """The attention over a line."""
        tokens = self.prompts([line])[0]
        maps = self.model.attention_maps(torch.tensor([tokens], device=self.device))
        names = ["<bos>", *self.tokenizer.tokens(tokens[1:])]
        return AttentionReading(
            source_tokens=names,
            target_tokens=names,
            maps={role: [layer[0].float().cpu() for layer in maps[role]] for role in maps},
        )
