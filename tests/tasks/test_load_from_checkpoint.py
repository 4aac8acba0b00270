"""A task comes back out of its checkpoint by Lightning's name for that, as it does by `load`."""

from functools import partial

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from attention_zoo import create_attention, create_position
from attention_zoo.decoding import Sample
from attention_zoo.errors import BadInput, UserError
from attention_zoo.models import LanguageModel
from attention_zoo.tasks import load
from attention_zoo.tasks.data.batches import LanguageBatch
from attention_zoo.tasks.data.tokenizers import ByteTokenizer
from attention_zoo.tasks.training.language_modeling import LanguageModelingTask
from attention_zoo.tasks.training.optimizers import adamw
from attention_zoo.tasks.training.schedules import linear
from attention_zoo.tasks.training.translation import TranslationTask
from tests.tasks.test_language_modeling import OPTIONS


def parts():
    """What a task of one's own is built from."""
    model = LanguageModel(
        vocabulary_size=260,
        dim=8,
        layers=1,
        ffn_dim=8,
        attention=partial(create_attention, "multi_head", heads=2),
        position=partial(create_position, "rotary"),
    )
    return {
        "model": model,
        "optimizer": partial(adamw, lr=0.1),
        "schedule": partial(linear, warmup_steps=1),
        "decoding": Sample(temperature=0, max_tokens=4),
    }


@pytest.fixture
def built(tmp_path):
    """A task that was built from Python and trained for a step; and its checkpoint."""
    task = LanguageModelingTask(**parts(), tokenizer=ByteTokenizer(), config={})
    tokens = torch.randint(4, 260, (2, 9))
    batches = DataLoader([LanguageBatch(tokens[:, :-1], tokens[:, 1:])], batch_size=None)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, **quiet
    )
    trainer.fit(task, batches)
    trainer.save_checkpoint(tmp_path / "built.ckpt")
    return task.eval(), tmp_path / "built.ckpt"


def test_a_trained_task_comes_back(train):
    path = train(*OPTIONS) / "checkpoints" / "best.ckpt"
    expected, task = load(path), LanguageModelingTask.load_from_checkpoint(path)
    assert type(task) is LanguageModelingTask and not task.training
    for name, weight in expected.state_dict().items():
        assert torch.equal(task.state_dict()[name], weight)
    assert LanguageModelingTask.load_from_checkpoint(str(path), "cpu").config == expected.config
    with pytest.raises(UserError, match="LanguageModelingTask, not of TranslationTask"):
        TranslationTask.load_from_checkpoint(path)
    with pytest.raises(UserError, match="config that decides label_smoothing"):
        LanguageModelingTask.load_from_checkpoint(path, label_smoothing=0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_task_that_was_built_from_python_comes_back_from_the_same_parts(built):
    task, path = built
    again = LanguageModelingTask.load_from_checkpoint(path, **parts())
    assert not again.training
    assert again.generate(["a b"]) == task.generate(["a b"])
    for name, weight in task.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight)


@pytest.mark.filterwarnings("ignore")
def test_without_its_parts_it_is_refused_in_one_line(built):
    _, path = built
    for call in (load, LanguageModelingTask.load_from_checkpoint):
        with pytest.raises(BadInput, match=r"built from Python.*load_from_checkpoint"):
            call(path)
    other = parts() | {"model": torch.nn.Linear(2, 2)}
    with pytest.raises(UserError, match="does not fit"):
        LanguageModelingTask.load_from_checkpoint(path, **other)


def test_half_a_config_is_refused_at_once():
    for config in ({"task": {"name": "language_modeling"}}, None, "config.yaml"):
        with pytest.raises(UserError, match="config must be"):
            LanguageModelingTask(**parts(), tokenizer=ByteTokenizer(), config=config)
