"""A training of a second, for tests of callbacks."""

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from attention_zoo.tasks.training.callbacks.last_checkpoint import LastCheckpoint
from attention_zoo.tasks.training.optimizers import adamw
from attention_zoo.tasks.training.schedules import linear
from attention_zoo.tasks.training.task import StepOutput
from attention_zoo.tasks.views.attention_record import AttentionRecord

QUIET = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Task(LightningModule):
    """A regression with dropout, so that modes and random states matter."""

    sample_columns = ("source", "translation")

    def __init__(self, optimizer=adamw):
        super().__init__()
        self.optimizer = optimizer
        self.model = nn.Sequential()
        self.model.add_module("hidden", nn.Linear(4, 4))
        self.model.add_module("dropout", nn.Dropout(0.5))
        self.model.add_module("head", nn.Linear(4, 1))
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append(batch[0, 0].item())
        loss = self.model(batch).square().sum()
        self.last_step = StepOutput(loss.detach(), torch.tensor(batch.numel()))
        return loss

    def validation_step(self, batch, index):
        self.log("val/loss", self.model(batch).square().mean())

    def test_step(self, batch, index):
        self.log("test/loss", self.model(batch).square().mean())

    def configure_optimizers(self):
        optimizer = self.optimizer(self.model, lr=0.1)
        steps = self.trainer.estimated_stepping_batches
        schedule = linear(optimizer, warmup_steps=2, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def generate(self, lines):
        assert not self.model.dropout.training and not torch.is_grad_enabled()
        torch.rand(3)
        return [line.upper() for line in lines]

    def attend(self, line):
        assert not self.model.dropout.training and not torch.is_grad_enabled()
        torch.rand(3)
        source, target = line.split(), [*line.split(), "end"]
        maps = torch.rand(2, len(target), len(source)).softmax(-1)
        return AttentionRecord(source, target, {"cross": [maps, maps]})


class Data(LightningDataModule):
    probes = ("one two", "three four five", "six")
    probe_references = ("um dois", "três quatro cinco", "seis")

    def __init__(self, batches=4):
        super().__init__()
        self.rows = torch.arange(batches * 8.0).view(-1, 1).expand(-1, 4) / 10

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=8)

    val_dataloader = test_dataloader = train_dataloader


def trainer(*callbacks, **options):
    defaults = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(
            isinstance(callback, (ModelCheckpoint, LastCheckpoint)) for callback in callbacks
        ),
        "log_every_n_steps": 2,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **options})


def fit(*callbacks, task=None, data=None, ckpt_path=None, **options):
    torch.manual_seed(0)
    task = task or Task()
    run = trainer(*callbacks, **options)
    run.fit(task, data or Data(), ckpt_path=ckpt_path, weights_only=True)
    return task


def weights(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def start(optimizer=adamw):
    """A task that depends on its seed only at its start."""
    torch.manual_seed(0)
    task = Task(optimizer)
    task.model.dropout.p = 0.0
    return task


class StopAfterTwoEpochs(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1


class Spy(Callback):
    """Keeps what the trainer knew at the end of every training batch and validation."""

    def __init__(self):
        self.logged, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.logged.append((trainer.global_step, dict(trainer.callback_metrics)))

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(weights(pl_module))
