"""What is measured of a model: its memory, counted by hand, its cache, and its batches."""

import math
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.models.blocks import AttentionSublayer
from attention_zoo.tasks import host_memory
from attention_zoo.tasks.benchmark.measuring import MeasuredModel, tokenizer_of_size
from attention_zoo.tasks.benchmark.peak_memory import peak_tensor_bytes
from attention_zoo.tasks.benchmark.rounds import MeasuredEntry
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


def test_backends_of_gpus_have_the_flops_of_their_plain_form() -> None:
    plain, flex = (
        create_model(*LANGUAGE, f"attention.backend={name}").step_flops(2, 16)
        for name in ("sdpa", "flex")
    )
    assert plain == flex > 0


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


def test_what_does_not_fit_is_left_out_at_its_length_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = MeasuredEntry("multi_head", [], composed(*LANGUAGE))
    options = OmegaConf.create({"batch_size": 1, "decode_batch_sizes": [2], "decode_tokens": 2})
    time_step, decode = entry.model.time_step, entry.model.decode

    def raise_at(longest: int, function: Any) -> Any:
        def measure(batch_size: int, length: int, *others: int) -> Any:
            if length > longest:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return function(batch_size, length, *others)

        return measure

    monkeypatch.setattr(entry.model, "time_step", raise_at(16, time_step))
    monkeypatch.setattr(entry.model, "decode", raise_at(8, decode))
    for number in range(3):
        for length in (8, 16, 32):
            entry.measure(length, options, is_first=number == 0)
    result = entry.result()
    assert {*result.reasons} == {"32 tokens", "decoding at batch 2 and 16 tokens"}
    assert {*result.values["step_milliseconds"]} == {*result.values["peak_memory_bytes"]} == {8, 16}
    assert {*result.values["step_flops"]} == {8, 16}
    assert {*result.values["decode_tokens_per_second/2"]} == {8}


def test_the_first_round_warms_up() -> None:
    entry = MeasuredEntry("multi_head", [], composed(*LANGUAGE))
    entry.values["step_milliseconds"][8] = [900.0, 1.0, 3.0, 2.0]
    entry.values["peak_memory_bytes"][8] = [7.0]
    assert entry.result().values == {"step_milliseconds": {8: 2.0}, "peak_memory_bytes": {8: 7.0}}
