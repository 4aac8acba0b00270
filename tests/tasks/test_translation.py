"""The translation task: what its loss is, and that a step does not depend on how it is divided."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from attention_zoo import create_attention, create_position
from attention_zoo.decoding import Beam, Greedy
from attention_zoo.errors import UserError
from attention_zoo.models import Seq2Seq
from attention_zoo.tasks.commands import attend, translate
from attention_zoo.tasks.commands.input_checks import check_lines
from attention_zoo.tasks.data.batches import TranslationBatch
from attention_zoo.tasks.data.tokenizers import ByteTokenizer, CharacterTokenizer
from attention_zoo.tasks.training import translation
from attention_zoo.tasks.training.translation import TranslationTask
from tests.conformance.cases import mark_exhaustive

SMALL = ["model=tiny", "model.dim=16", "model.heads=2", "model.layers=1", "model.ffn_dim=32"]
LINES = ["tokenizer=characters", "data.source.size=30", "data.source.valid=4", "data.source.test=4"]
SHORT = [*SMALL, *LINES, "callbacks=minimal", "logger=none", "test=false", "trainer.max_steps=3"]
RATE = 0.1


class PlainSGD(torch.optim.SGD):
    """Plain descent, so that the step of a weight is its gradient."""


def new_task(label_smoothing=0.0):
    torch.manual_seed(0)
    attention = partial(create_attention, "multi_head", heads=2)
    model = Seq2Seq(
        dim=16,
        layers=1,
        ffn_dim=32,
        activation="gelu",
        norm="layer",
        norm_order="pre",
        dropout=0.0,
        tie_embeddings=True,
        vocabulary_size=260,
        pad_id=0,
        encoder_layers=None,
        decoder_layers=None,
        encoder_attention=attention,
        decoder_attention=attention,
        cross_attention=attention,
        position=partial(create_position, "sinusoidal"),
    )
    return TranslationTask(
        model=model,
        tokenizer=ByteTokenizer(),
        optimizer=lambda model: PlainSGD(model.parameters(), lr=RATE),
        schedule=lambda optimizer, total_steps: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 1.0
        ),
        decoding=Greedy(),
        label_smoothing=label_smoothing,
        config={},
    ).double()


def rows(*lengths, width=None):
    """Pairs of these lengths, padded to the longest, or to a width."""
    generator = torch.Generator().manual_seed(1)
    width = width or max(lengths)
    source, target = torch.zeros(2, len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        tokens = torch.randint(4, 260, (2, length), generator=generator)
        source[row, :length], target[row, :length] = tokens
        source[row, length - 1] = target[row, length - 1] = 2
        target[row, 0] = 1
    return TranslationBatch(source, target, torch.arange(len(lengths)))


def step(task, batches):
    """One optimiser step over all batches; returns the gradients that it used."""
    before = {name: weight.detach().clone() for name, weight in task.model.named_parameters()}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=len(batches),
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, DataLoader(batches, batch_size=None))
    after = dict(task.model.named_parameters())
    return {name: (before[name] - after[name].detach()) / RATE for name in before}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("width", [None, 17])
def test_a_step_is_the_mean_over_target_tokens_however_divided(label_smoothing, width):
    whole = rows(3, 9, 5, 6, 4)
    task = new_task(label_smoothing)
    targets = whole.target[:, 1:]
    loss = cross_entropy(
        task.model(whole.source, whole.target[:, :-1]).flatten(0, 1),
        targets.flatten(),
        ignore_index=0,
        label_smoothing=label_smoothing,
    )
    names = [name for name, _ in task.model.named_parameters()]
    gradients = torch.autograd.grad(loss, list(task.model.parameters()))
    by_hand = dict(zip(names, gradients, strict=True))

    padded = rows(3, 9, 5, 6, 4, width=width)
    parts = [TranslationBatch(*(side[rows] for side in padded)) for rows in ([0, 1, 2], [3], [4])]
    for batches in ([padded], parts):
        gradients = step(new_task(label_smoothing), batches)
        for name in names:
            torch.testing.assert_close(gradients[name], by_hand[name], rtol=1e-9, atol=1e-11)


def results(run):
    return json.loads((run / "results.json").read_text())


@pytest.mark.parametrize(
    "overrides",
    mark_exhaustive(
        (overrides, "a training")
        for overrides in (
            ["trainer.precision=bf16-mixed"],
            ["optimizer=muon", "schedule=warmup_stable_decay"],
            ["schedule=constant", "trainer.accumulate_grad_batches=2"],
            ["schedule=linear", "data.num_workers=0"],
            ["schedule=inverse_square_root", "schedule.warmup_steps=2"],
        )
    ),
    ids=" ".join,
)
def test_choices_train(train, overrides):
    run = train(*SHORT, *overrides)
    assert 0 < results(run)["val/loss"] < 20


@pytest.mark.slow
def test_the_averaged_weights_are_those_that_are_scored(train):
    run = train(*SHORT, "callbacks=averaged", "trainer.val_check_interval=1")
    folder = run / "checkpoints"
    averaged, best = (
        torch.load(folder / name, weights_only=True)["state_dict"]
        for name in ("averaged.ckpt", "best.ckpt")
    )
    assert any(not torch.equal(averaged[name], best[name]) for name in averaged)
    stored = torch.load(folder / "best.ckpt", weights_only=True)["callbacks"]
    (best_state,) = (state for name, state in stored.items() if name.startswith("ModelCheckpoint"))
    assert results(run)["val/loss"] != pytest.approx(
        float(best_state["best_model_score"]), abs=1e-9
    )


@pytest.mark.slow
def test_losses_are_those_of_the_best_weights_and_the_last_step_is_validated(train):
    run = train(*SHORT, "trainer.max_steps=5", "trainer.val_check_interval=2", "optimizer.lr=0.05")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 5
    (best_state,) = (
        s for name, s in checkpoint["callbacks"].items() if name.startswith("ModelCheck")
    )
    assert results(run)["val/loss"] == pytest.approx(
        float(best_state["best_model_score"]), rel=1e-6
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own use of torch.jit
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own look at it
@pytest.mark.parametrize("compiling", ["true", "{backend: eager}"])
def test_a_compiled_model_trains(train, compiling):
    torch.compiler.reset()
    run = train(*SHORT, f"compile={compiling}", "trainer.max_steps=1")
    assert results(run)["val/loss"] > 0


def test_a_line_without_text_has_an_empty_translation():
    task = new_task().eval()
    for task.decoding in (Greedy(max_extra=5), Beam(width=3, n_best=3, max_extra=5)):
        n_best = getattr(task.decoding, "n_best", 1)
        alone = task.hypotheses(["one", "two"])
        mixed = task.hypotheses(["", "one", " \t", "two", ""])
        assert mixed[0] == mixed[2] == mixed[4] == [("", 0.0)] * n_best
        assert [mixed[1], mixed[3]] == alone
        assert task.hypotheses(["", " "]) == [[("", 0.0)] * n_best] * 2


def test_lines_of_like_length_are_translated_together(monkeypatch):
    monkeypatch.setattr(translation, "DECODED_TOKENS", 40)
    task, shapes = new_task().eval(), []
    task.decoding = Greedy(max_extra=5)
    decode = task.decode
    monkeypatch.setattr(
        task, "decode", lambda source: shapes.append(tuple(source.shape)) or decode(source)
    )
    lines = ["a b", "c" * 60, "a c d", "b" * 12, "d"]
    together = task.hypotheses(lines)
    assert shapes == [(1, 61), (3, 13), (1, 2)]  # with eos
    assert [x[0][0] for x in together] == [task.hypotheses([line])[0][0][0] for line in lines]


def test_a_long_line_is_translated_up_to_a_limit_and_said():
    task = new_task().eval()
    task.decoding = Greedy(max_ratio=0, max_extra=5)
    task.max_source_tokens = 16
    assert task.hypotheses(["a" * 5000, "one"]) == task.hypotheses(["a" * 15, "one"])
    assert task.describe_troubles("a" * 15) == {}
    [(kind, text)] = task.describe_troubles("a" * 5000).items()
    assert kind == "are longer than 16 tokens" and text.startswith("has 5,001 tokens")


def test_a_line_in_another_script_is_said():
    task = new_task().eval()
    task.tokenizer = CharacterTokenizer("abc ")
    assert task.describe_troubles("abc cab") == {}
    [text] = task.describe_troubles("a Привет П").values()
    assert text.startswith("has 7 characters that the model does not know, of 10: Привет;")


def test_lines_are_checked_as_they_pass(capsys):
    task = new_task().eval()
    task.tokenizer = CharacterTokenizer("abc ")
    lines = check_lines(iter(["abc", "П", "abc", "Ж"]), task)
    assert [next(lines), next(lines)] == ["abc", "П"]
    assert capsys.readouterr().err.startswith("warning: line 2 has 1 characters")
    assert [*lines] == ["abc", "Ж"]
    assert capsys.readouterr().err == (
        "warning: 2 of 4 lines have characters that the model does not know\n"
    )


def test_lines_are_translated_before_the_input_ends(monkeypatch, capsys):
    """No more lines are read than are translated next."""
    task, printed = new_task().eval(), []

    def lines():
        for number in range(200):
            printed.append(len(capsys.readouterr().out.splitlines()))
            yield f"{number}" if number % 3 else ""

    task.decoding = Greedy(max_ratio=0, max_extra=2)
    monkeypatch.setattr(translate, "LINES", 100)
    monkeypatch.setattr(translate, "load_task", lambda *_: task)
    monkeypatch.setattr(translate, "require_task", lambda *_: None)
    monkeypatch.setattr(translate, "read_lines", lambda *_: lines())
    invocation = SimpleNamespace(require_checkpoint=dict, lines=[])
    translate.run({"input": None, "decoding": {}}, invocation)
    assert printed[64] == 64 and printed[164] == 100
    assert sum(printed) + len(capsys.readouterr().out.splitlines()) == 200


def test_nothing_to_attend_to_is_refused(monkeypatch):
    monkeypatch.setattr(attend, "load_task", lambda *_: new_task().eval())
    invocation = SimpleNamespace(require_checkpoint=dict, lines=[" "], overrides=[])
    config = {"input": None, "output": "x.html", "decoding": {}}
    monkeypatch.setattr(attend, "check_decoding", lambda *_: None)
    with pytest.raises(UserError, match="got line 1 without any"):
        attend.run(config, invocation)
