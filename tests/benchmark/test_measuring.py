"""What is measured of a model: its memory, counted by hand, its cache, and its batches."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.models.blocks import AttentionSublayer
from attention_zoo.tasks import host_memory
from attention_zoo.tasks.benchmark.measuring import MeasuredModel, tokenizer_of_size
from attention_zoo.tasks.benchmark.peak_memory import peak_tensor_bytes
from attention_zoo.tasks.training.trainer_options import check_trainer
from tests.conf.test_conf import composed

SMALL = ["model=tiny", "model.dim=16", "model.heads=2", "model.layers=1", "model.ffn_dim=32"]
LANGUAGE = ["task=language_modeling", "tokenizer=bytes", *SMALL]
KIB = 1024


def create_model(*overrides: str) -> MeasuredModel:
    config = composed(*overrides)
    return MeasuredModel(config, check_trainer(config))


def peak(step: Any, *existing: Tensor) -> int:
    return peak_tensor_bytes(step, existing, torch.device("cpu"))


def test_the_peak_is_of_all_tensors_that_live_at_a_time() -> None:
    x = torch.zeros(KIB // 4)  # 1 KiB
    assert peak(lambda: None, x) == KIB
    assert peak(lambda: x.exp().exp().exp().sum().item(), x) == 3 * KIB, "x, and two at a time"
    assert peak(lambda: [x.exp() for _ in range(5)].clear(), x) == 6 * KIB
    assert peak(lambda: x.view(2, -1)[0].add_(1), x) == KIB, "views and writing take none"


def test_the_peak_counts_what_backward_needs_and_makes() -> None:
    x = torch.zeros(KIB // 4, requires_grad=True)
    # x, the output of each exp, kept for backward, and gradients of two of them.
    kept = peak(lambda: x.exp().exp().exp().sum().backward(), x)
    assert 5 * KIB <= kept < 7 * KIB
    assert x.grad is not None
    with torch.no_grad():
        assert peak(lambda: x.exp().exp().exp().sum(), x) < kept


def test_the_memory_of_a_step_has_weights_and_gradients() -> None:
    model = create_model(*LANGUAGE)
    weights = 4 * sum(x.numel() for x in model.task.parameters())
    short, long = (model.step_bytes(2, length) for length in (16, 64))
    assert 2 * weights < short < long
    assert model.step_bytes(2, 16) == short


def test_a_step_is_one_of_training() -> None:
    model = create_model(*LANGUAGE)
    forward, step = model.time_step(2, 8)
    assert 0 < forward < step
    assert all(x.grad is not None for x in model.task.model.parameters())
    assert model.task.step_batches == []
    batch = model.random_batch(2, 8)
    loss = model.compute_loss(batch).item() / (2 * 8)
    assert loss == pytest.approx(math.log(260), abs=1.0)


@pytest.mark.parametrize("attention", ["multi_head", "linear", "sliding_window"])
def test_decoding_keeps_the_state_that_the_layers_state(attention: str) -> None:
    window = ["attention.window=8"] if attention == "sliding_window" else []
    model = create_model(*LANGUAGE, f"attention={attention}", *window)
    seconds, state = model.decode(3, 20, 4)
    parts = [x for x in model.task.model.modules() if isinstance(x, AttentionSublayer)]
    assert seconds > 0 and state == 4 * sum(x.decode_state(20) for x in parts)


def test_a_translation_has_a_source_and_a_target_of_the_length() -> None:
    model = create_model("task=translation", "tokenizer=bytes", *SMALL)
    batch: Any = model.random_batch(2, 8)
    assert batch.source.shape == (2, 8) and batch.target[:, :-1].shape == (2, 8)
    assert model.time_step(2, 8)[0] > 0
    assert model.decode(3, 8, 4)[1] > 0


def test_a_model_without_a_cache_does_not_decode() -> None:
    model = create_model(*LANGUAGE, "attention=longformer")
    with pytest.raises(Unsupported, match="longformer has no cached decoding"):
        model.decode(1, 8, 4)


def test_caches_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "host_memory_bytes", lambda: 10_000)
    model = create_model(*LANGUAGE)
    with pytest.raises(UserError, match=r"the caches of 32 sequences of 20 tokens .* smaller"):
        model.decode(32, 20, 4)


@pytest.mark.parametrize(
    ("overrides", "size"),
    [(["tokenizer=bytes"], 260), (["tokenizer=bpe", "tokenizer.vocabulary_size=500"], 500)],
)
def test_the_vocabulary_is_that_of_the_tokenizer(overrides: list[str], size: int) -> None:
    config = composed("task=language_modeling", *overrides)
    assert tokenizer_of_size(config["tokenizer"]).vocabulary_size == size
    model = create_model(*LANGUAGE[:1], *SMALL, *overrides)
    embedding = next(x for x in model.task.model.modules() if isinstance(x, nn.Embedding))
    assert embedding.num_embeddings == size


def test_a_vocabulary_of_data_is_refused() -> None:
    node = composed("task=language_modeling", "tokenizer=characters")["tokenizer"]
    with pytest.raises(UserError, match="reads no data, and CharacterTokenizer"):
        tokenizer_of_size(node)
