"""Attention maps of any module in any Trainer: the right ones, which cost training nothing."""

import re
import time
import types

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from attention_zoo import create_attention
from attention_zoo.errors import UserError
from attention_zoo.tasks.training.callbacks import attention_maps
from attention_zoo.tasks.training.callbacks.attention_maps import (
    AttentionMaps,
    Probe,
    record_probe,
)
from attention_zoo.tasks.training.callbacks.periodic_inspection import InspectionCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
]
DIM, VOCABULARY, NAMES = 8, 6, ["the", "cat", "sat"]
TOKENS, SOURCE = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5, 1, 2]])


class TinyModel(LightningModule):
    """A user's language model, which does not use the tasks."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, DIM)
        self.layers = nn.ModuleList(
            create_attention("multi_head", dim=DIM, heads=2, role="causal", position="rotary")
            for _ in range(2)
        )
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(DIM, VOCABULARY)
        self.steps = 0

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + self.dropout(layer(x))
        return self.head(x)

    def training_step(self, tokens, index):
        self.steps += 1
        loss = nn.functional.cross_entropy(self(tokens[:, :-1]).mT, tokens[:, 1:])
        self.log("loss", loss)
        return loss

    def validation_step(self, tokens, index):
        self(tokens)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TinyEncoderDecoder(TinyModel):
    """A model that reads a source sequence as well."""

    def __init__(self):
        super().__init__()
        self.encoder = create_attention("multi_head", dim=DIM, heads=4, role="global")
        self.cross = create_attention("multi_head", dim=DIM, heads=2, role="cross")

    def forward(self, tokens, source):
        memory = self.encoder(self.embedding(source))
        x = self.layers[0](self.embedding(tokens))
        return self.cross(x, memory)


@pytest.fixture
def figure_calls(monkeypatch):
    """Record what `draw_layers` is to draw instead: records, roles, layers and heads."""
    calls = []

    def draw_layers(record, role, layers, heads):
        for layer in layers:
            calls.append((record, role, layer, heads))
            yield Image.new("L", (1, 1))

    monkeypatch.setattr(attention_maps, "draw_layers", draw_layers)
    monkeypatch.setattr(attention_maps, "save_png", lambda figure, path: figure.save(path))
    return calls


def probe(**changes):
    return Probe(**{"inputs": TOKENS, "tokens": NAMES} | changes)


def trainer(folder, *callbacks, **options):
    defaults = {"max_steps": 4, "logger": False, "num_sanity_val_steps": 0}
    return Trainer(
        **(defaults | options),
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(folder, *callbacks, module=None, **options):
    torch.manual_seed(0)
    module = module or TinyModel()
    rows = DataLoader(torch.arange(32).view(8, 4) % VOCABULARY, batch_size=2)
    trainer(folder, *callbacks, **options).fit(module, rows, rows)
    return module


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*.png")}


def test_a_users_module_is_drawn_in_a_users_trainer(tmp_path):
    maps = AttentionMaps(probes=[probe()], layers=[1])
    module = fit(tmp_path, maps)
    assert files(tmp_path) == {"figures/probe-1-decoder-layer-1.png"}
    [path] = maps.paths
    assert path.read_bytes().startswith(b"\x89PNG")
    assert module.steps == 4


@pytest.mark.parametrize("inputs", [TOKENS, (TOKENS,), [TOKENS], {"tokens": TOKENS}])
def test_maps_and_tokens_are_those_of_the_module_and_the_probe(tmp_path, inputs):
    module = TinyModel().eval()
    record = record_probe(trainer(tmp_path), module, probe(inputs=inputs))
    assert record.source_tokens == record.target_tokens == NAMES
    assert list(record.maps) == ["decoder"]
    x = module.embedding(TOKENS)
    for layer, weights in zip(module.layers, record.maps["decoder"], strict=True):
        assert torch.equal(weights, layer.attention_map(x)[0])
        x = x + layer(x)


def test_cross_attention_has_the_tokens_of_both_sequences(tmp_path):
    names = ["quatro", "cinco", "um", "dois"]
    given_probe = probe(inputs=(TOKENS, SOURCE), source_tokens=names)
    record = record_probe(trainer(tmp_path), TinyEncoderDecoder().eval(), given_probe)
    assert (record.source_tokens, record.target_tokens) == (names, NAMES)
    shapes = {role: [tuple(x.shape) for x in layers] for role, layers in record.maps.items()}
    assert shapes == {"encoder": [(4, 4, 4)], "decoder": [(2, 3, 3)], "cross": [(2, 3, 4)]}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_probe_is_read_in_the_precision_of_training(tmp_path, precision):
    run = trainer(tmp_path, precision=precision)
    module = run.precision_plugin.convert_module(TinyModel().eval())
    seen = []
    module.layers[0].register_forward_hook(lambda *arguments: seen.append(arguments[-1].dtype))
    record = record_probe(run, module, probe())
    assert seen == [torch.bfloat16]
    assert record.maps["decoder"][0].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [("cross", 0, None)]),
        ({"roles": ["decoder", "encoder"]}, [("decoder", 0, None), ("encoder", 0, None)]),
        ({"heads": [1, 0]}, [("cross", 0, [1, 0])]),
        ({"roles": ["encoder"], "layers": [0], "heads": [3]}, [("encoder", 0, [3])]),
    ],
)
def test_roles_layers_and_heads_are_chosen(tmp_path, figure_calls, options, expected):
    module = TinyEncoderDecoder().eval()
    given_probe = probe(inputs=(TOKENS, SOURCE), source_tokens=NAMES)
    AttentionMaps(probes=[given_probe] * 2, **options).draw(trainer(tmp_path), module, tmp_path)
    assert [call[1:] for call in figure_calls] == expected * 2


def test_pictures_of_chosen_steps_are_kept_and_others_are_replaced(tmp_path, figure_calls):
    maps = AttentionMaps(probes=[probe()], layers=[0], steps=[0, 3], every_n_validations=2)
    module = TinyModel()
    seen = []

    class Spy(Callback):
        def on_validation_end(self, *_):
            seen.append(len(figure_calls))

    fit(tmp_path, maps, Spy(), module=module, max_steps=12, val_check_interval=2)
    name = "probe-1-decoder-layer-0.png"
    folders = ["figures", "figures/step-0", "figures/step-3"]
    assert files(tmp_path) == {f"{folder}/{name}" for folder in folders}
    # Before the first, after step 3, at every second validation but the last, and at the end.
    assert seen == [1, 3, 3, 4, 4, 4] and len(figure_calls) == 5
    first, *_, last = (call[0].maps["decoder"][0] for call in figure_calls)
    assert not torch.equal(first, last)


def test_a_step_of_several_batches_is_drawn_once(tmp_path, figure_calls):
    maps = AttentionMaps(probes=[probe()], layers=[0], steps=[0, 1], every_n_validations=None)
    fit(tmp_path, maps, max_steps=2, accumulate_grad_batches=2)
    assert len(figure_calls) == 3


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_pictures_go_to_loggers_that_take_images_and_to_no_others(tmp_path, kind):
    logger = kind(tmp_path)
    maps = AttentionMaps(probes=[probe()], layers=[0], heads=[0], every_n_validations=None)
    fit(tmp_path, maps, logger=logger, log_every_n_steps=1)
    key = b"attention/probe-1/decoder/layer-0"
    written = b"".join(
        path.read_bytes() for path in tmp_path.rglob("version_0/*") if path.is_file()
    )
    assert b"loss" in written
    assert (key in written) is (kind is TensorBoardLogger)


# What it costs


def test_inspections_change_no_weight(tmp_path, figure_calls):
    maps = AttentionMaps(probes=[probe()], steps=range(5), every_n_validations=1)
    weights = [
        fit(tmp_path, *callbacks, val_check_interval=1, max_steps=6).state_dict()
        for callbacks in ([], [maps])
    ]
    assert len(figure_calls) > 10
    plain, inspected = weights
    assert all(torch.equal(inspected[name], value) for name, value in plain.items())


@pytest.mark.parametrize("on", [False, True])
def test_training_runs_without_hooks(tmp_path, figure_calls, on):
    """Off, there are none at all; on, only while it draws."""
    counts = []

    class Spy(Callback):
        def count(self, trainer, module, *_):
            counts.extend(len(part._forward_pre_hooks) for part in module.modules())

        on_train_batch_start = on_train_batch_end = on_validation_end = on_train_end = count

    maps = [AttentionMaps(probes=[probe()], steps=[0, 2])] if on else []
    fit(tmp_path, *maps, Spy())
    assert counts and not any(counts)
    assert bool(figure_calls) is on


def test_its_share_of_the_time_is_printed(tmp_path, capsys, monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    stopped = types.SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr("attention_zoo.tasks.training.callbacks.periodic_inspection.time", stopped)

    class Slow(InspectionCallback):
        label = "slow inspections"

        def inspect(self, trainer, task):
            clock.now += 2.0

    class Clock(Callback):
        def on_train_batch_end(self, *_):
            clock.now += 1.0

    slow = Slow(every_n_validations=1)
    for _ in range(2):
        fit(tmp_path, slow, Clock(), val_check_interval=2)
        assert capsys.readouterr().out == "slow inspections  4.0 s, 50.0% of the training's time\n"
    fit(tmp_path, Clock())
    fit(tmp_path, slow, max_steps=0)  # does not train
    assert capsys.readouterr().out == ""
    assert slow.seconds == 0.0


def test_the_check_at_the_start_counts_too(tmp_path, figure_calls, capsys, monkeypatch):
    maps = AttentionMaps(probes=[probe()])
    monkeypatch.setattr(maps, "check", lambda *_: time.sleep(0.2))
    fit(tmp_path, maps)
    printed = re.fullmatch(
        r"attention maps  (\d+\.\d) s, \d+\.\d% of the training's time\n", capsys.readouterr().out
    )
    assert float(printed[1]) >= 0.2


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roles": ["cross"]}, "roles must be some of decoder, got ['cross']"),
        ({"layers": [0, 2]}, "layers of decoder must be some of 0, 1, got [0, 2]"),
        ({"layers": [-1]}, "layers of decoder must be some of 0, 1, got [-1]"),
        ({"heads": [2]}, "heads of decoder must be some of 0, 1, got [2]"),
        ({"heads": []}, "heads of decoder must be some of 0, 1, got []"),
        ({"steps": [2, 5]}, "steps must be among the 4 of this training, got [5]"),
        (
            {"probes": [probe(tokens=NAMES[:2])]},
            "[heads 2 2], for 2 query tokens and 2 key tokens, got [2, 3, 3]",
        ),
        ({"probes": [probe(inputs=TOKENS.expand(2, 3))]}, "a batch of one, got 2 rows"),
        ({"probes": 2}, "probes=2 are lines of the data module"),
    ],
)
def test_what_is_not_there_is_refused_before_the_first_step(
    tmp_path, figure_calls, options, message
):
    module = TinyModel()
    with pytest.raises(UserError, match=re.escape(message)):
        fit(tmp_path, AttentionMaps(**{"probes": [probe()]} | options), module=module)
    assert module.steps == 0 and not figure_calls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roles": ["global"]}, "roles must be some of encoder, decoder, cross, got ['global']"),
        ({"roles": "cross"}, "roles must be a list, such as [cross], got cross"),
        ({"layers": 2}, "layers must be a list, such as [2], got 2"),
        ({"steps": [-1]}, "steps must be whole numbers, got [-1]"),
        ({"probes": 0}, "probes must be at least 1, got 0"),
        ({"probes": []}, "probes must be at least 1, got 0"),
    ],
)
def test_what_means_nothing_is_refused_at_once(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        AttentionMaps(**options)


def test_a_module_that_calls_no_attention_is_refused(tmp_path):
    class Idle(TinyModel):
        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    with pytest.raises(UserError, match="Idle called no attention of the zoo"):
        fit(tmp_path, AttentionMaps(probes=[probe()]), module=Idle())


def test_weights_in_pieces_over_ranks_are_refused(tmp_path):
    run = trainer(tmp_path, devices=2, strategy=ModelParallelStrategy())
    with pytest.raises(UserError, match="ModelParallelStrategy keeps a piece of the weights"):
        AttentionMaps(probes=[probe()]).setup(run, TinyModel(), "fit")
