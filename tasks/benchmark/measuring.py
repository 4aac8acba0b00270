"""Measure a model: the time and the memory of training, the speed and the state of decoding."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from lightning import Trainer
from torch import Tensor

from attention_zoo.errors import UserError
from attention_zoo.models import Seq2Seq
from attention_zoo.tasks.analysis.costs import cache_bytes, copy_task, count_flops
from attention_zoo.tasks.benchmark.peak_memory import peak_tensor_bytes
from attention_zoo.tasks.configuration.build import build_task
from attention_zoo.tasks.data.batches import LanguageBatch, TranslationBatch
from attention_zoo.tasks.data.tokenizers import FIRST_ID, ByteTokenizer, SymbolTokenizer
from attention_zoo.tasks.host_memory import check_memory

BYTE_TOKENIZER = "attention_zoo.tasks.data.tokenizers.ByteTokenizer.train"


def tokenizer_of_size(node: Mapping[str, Any]) -> SymbolTokenizer:
    """Return a tokenizer with as many tokens as that of a config has.

    Raises:
        UserError: its number of tokens depends on the text that it learns from.
    """
    size = node.get("vocabulary_size")
    if node["_target_"] == BYTE_TOKENIZER:
        size = ByteTokenizer().vocabulary_size
    if size is None:
        name = node["_target_"].split(".")[-2]
        raise UserError(
            f"benchmark reads no data, and {name} has the tokens of its data; give "
            "tokenizer=bpe tokenizer.vocabulary_size=NUMBER, or tokenizer=bytes."
        )
    return SymbolTokenizer([str(number) for number in range(size - FIRST_ID)])


class MeasuredModel:
    """The model of a config, on the device and in the precision of a Trainer.

    Its batches are random tokens, of the same length in all rows, and without padding. A
    translation has a source and a target of that length.
    """

    def __init__(self, config: Mapping[str, Any], trainer: Trainer) -> None:
        torch.manual_seed(config["seed"])
        self.device, self.precision = trainer.strategy.root_device, trainer.precision_plugin
        task = build_task(config, tokenizer_of_size(config["tokenizer"]))
        self.task = cast(Any, self.precision.convert_module(task).to(self.device))
        self.is_compiled = bool(config["compile"])
        if self.is_compiled:
            options = config["compile"] if isinstance(config["compile"], dict) else {}
            self.task.model.compile(**options)

    def random_tokens(self, batch_size: int, length: int) -> Tensor:
        """Return tokens [b t], none of which is a special one."""
        size = (batch_size, length)
        return torch.randint(
            FIRST_ID, self.task.tokenizer.vocabulary_size, size, device=self.device
        )

    def random_batch(self, batch_size: int, length: int) -> LanguageBatch | TranslationBatch:
        """Return a batch of the task."""
        tokens = self.random_tokens(batch_size, length + 1)
        if isinstance(self.task.model, Seq2Seq):
            index = torch.arange(batch_size, device=self.device)
            return TranslationBatch(tokens[:, 1:].contiguous(), tokens, index)
        return LanguageBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def compute_loss(self, batch: LanguageBatch | TranslationBatch) -> Tensor:
        """Return the loss as training computes it."""
        with self.precision.forward_context():
            loss: Tensor = self.task.training_step(batch, 0)
        self.task.step_batches.clear()
        return loss

    def time_step(self, batch_size: int, length: int) -> tuple[float, float]:
        """Return the seconds of a forward pass with its loss, and those with the backward pass."""
        self.task.train().zero_grad(set_to_none=True)
        batch = self.random_batch(batch_size, length)
        self.synchronize()
        started = time.perf_counter()
        loss = self.compute_loss(batch)
        self.synchronize()
        forward = time.perf_counter() - started
        loss.backward()
        self.synchronize()
        return forward, time.perf_counter() - started

    def step_bytes(self, batch_size: int, length: int) -> int:
        """Return the peak of what weights, gradients, activations and the batch take in a step."""
        self.task.train().zero_grad(set_to_none=True)
        batch = self.random_batch(batch_size, length)
        existing = [*self.task.parameters(), *self.task.buffers()]
        existing += [x for x in batch if x is not None]
        return peak_tensor_bytes(lambda: self.compute_loss(batch).backward(), existing, self.device)

    def step_flops(self, batch_size: int, length: int) -> int:
        """Return the FLOPs of forward and backward passes, as `count_flops` counts them.

        They are those of a copy of the model, with backends that show their operations.
        """
        task = copy_task(self.task, device=None).train()
        batch = self.random_batch(batch_size, length)
        with count_flops() as counter:
            with self.precision.forward_context():
                loss = task.training_step(batch, 0)
            loss.backward()
        return counter.get_total_flops()

    @torch.inference_mode()
    def decode(self, batch_size: int, length: int, tokens: int) -> tuple[float, int]:
        """Decode the last tokens of sequences of a length; return the seconds, and the state.

        The state is the bytes that the cache takes for a sequence at the end. Every row of the
        batch has the same prompt, which is read once.

        Raises:
            Unsupported: the model has no cache.
            UserError: the caches of the batch do not fit into the memory.
        """
        model: Any = self.task.eval().model
        cache = model.new_cache()
        # Not by a call, which would be a compiled one.
        read = partial(model.forward, cache=cache)
        first = self.random_tokens(1, length - tokens)
        with self.precision.forward_context():
            if isinstance(model, Seq2Seq):
                source = self.random_tokens(1, length)
                source_mask = torch.ones_like(source, dtype=torch.bool)
                memory = model.encode(source, source_mask)
                model.decode(first, memory, source_mask, cache=cache)
                memory, source_mask = (
                    x.expand(batch_size, *x.shape[1:]) for x in (memory, source_mask)
                )
                read = partial(model.decode, memory=memory, source_mask=source_mask, cache=cache)
            else:
                read(
                    first,
                    target_positions=torch.full((1, 1), length - tokens - 1, device=self.device),
                )
            if self.device.type == "cpu":
                check_memory(
                    batch_size * cache_bytes(cache),
                    f"the caches of {batch_size} sequences of {length:,} tokens",
                    "give smaller decode_batch_sizes, or shorter lengths",
                )
            cache.reorder(torch.zeros(batch_size, dtype=torch.long, device=self.device))
            new = self.random_tokens(batch_size, 1)
            self.synchronize()
            started = time.perf_counter()
            for _ in range(tokens):
                new = read(new)[:, -1].argmax(-1, keepdim=True)
            self.synchronize()
            return time.perf_counter() - started, cache_bytes(cache) // batch_size
