import copy

import pytest
import torch
from torch import nn

from attention_zoo import create_attention, create_position
from attention_zoo.attention.recurrent.convolution import ShortConvolution
from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.conf_files import entry_options
from attention_zoo.tasks.training import muon, optimizers, schedules
from attention_zoo.zoo import ATTENTION, POSITION


class Model(nn.Module):
    """Embedding, a normalised hidden layer, a raw table, a scoring vector, and an output head."""

    def __init__(self, tied=False):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.positions = nn.Parameter(torch.randn(5, 8))
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.score = nn.Linear(8, 1, bias=False)
        self.head = nn.Linear(8, 11)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.norm(self.embedding(tokens) + self.positions)
        x = self.down(torch.relu(self.up(x)))
        return self.head(x * self.score(x))


MATRICES = {"up.weight", "down.weight"}


def model(**options):
    torch.manual_seed(0)
    return Model(**options)


def train(net, optimizer, steps, start=0, schedule=None):
    for step in range(start, start + steps):
        tokens = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
        if schedule:
            schedule.step()


def names(net, optimizer_groups):
    by_id = {id(parameter): name for name, parameter in net.named_parameters()}
    return {by_id[id(p)] for group in optimizer_groups for p in group["params"]}


@pytest.mark.parametrize("make", [optimizers.adamw, optimizers.muon])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_held_once(make, tied):
    net = model(tied=tied)
    held = [id(p) for group in make(net, lr=1e-3).param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())


@pytest.mark.parametrize("make", [optimizers.adamw, optimizers.muon])
def test_only_matrices_decay(make):
    net = model()
    groups = make(net, lr=1e-3, weight_decay=0.1).param_groups
    assert {group["weight_decay"] for group in groups} == {0.1, 0.0}
    decayed = names(net, [group for group in groups if group["weight_decay"]])
    assert decayed == MATRICES | {"positions", "head.weight"}


# Raw parameters of entries that are matrices of linear maps, convolutions or embeddings.
RAW_MATRICES = {
    "additive": {"energy"},
    "contextual": {"table"},
    "disentangled": {"table"},
    "hedgehog": {"feature_map.query_weight", "feature_map.key_weight"},
    "linformer": {"key_combinations", "value_combinations"},
    "multi_token": {"kernel", "mixture"},
    "recurrent_additive": {"energy"},
    "rg_lru": {"recurrence_gate.weight", "input_gate.weight"},
    "shaw": {"key_table", "value_table"},
    "slstm": {"cell.mixing"},
    "synthesizer": {"position_vectors"},
    "talking_heads": {"score_mix", "weight_mix"},
    "titans": {"layers.0.weight"},
    "ttt_linear": {"layers.0.weight"},
    "ttt_mlp": {"layers.0.weight", "layers.1.weight"},
}


@pytest.mark.parametrize("name", [*ATTENTION, *POSITION])
def test_of_every_entry_matrices_decay_and_nothing_else(name):
    if name in ATTENTION:
        options = entry_options("attention", name, heads=4)
        entry = create_attention(name, dim=32, role=ATTENTION.card(name).roles[0], **options)
    else:
        options = entry_options("position", name, heads=4)
        entry = create_position(name, dim=32, heads=4, head_dim=8, role="causal", **options)
    if not list(entry.parameters()):
        return
    groups = optimizers.adamw(entry, lr=1e-3, weight_decay=0.1).param_groups
    decayed = names(entry, [group for group in groups if group["weight_decay"]])
    layers = {
        f"{path}.weight"
        for path, part in entry.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d | ShortConvolution)
        and isinstance(getattr(part, "weight", None), nn.Parameter)
        and sum(size > 1 for size in part.weight.shape) > 1
    }
    assert decayed == layers | RAW_MATRICES.get(name, set())


def test_a_head_tied_to_the_embedding_does_not_decay():
    net = model(tied=True)
    groups = optimizers.adamw(net, lr=1e-3).param_groups
    assert "embedding.weight" in names(net, [g for g in groups if not g["weight_decay"]])


@pytest.mark.parametrize("tied", [False, True])
def test_muon_takes_the_hidden_matrices(tied):
    net = model(tied=tied)
    first = optimizers.muon(net, lr=1e-3).parts[0]
    assert isinstance(first, torch.optim.Muon)
    assert names(net, first.param_groups) == MATRICES


@pytest.mark.parametrize("make", [optimizers.adamw, optimizers.muon])
def test_frozen_parameters_are_left_out(make):
    net = model()
    net.up.requires_grad_(False)
    assert not names(net, make(net, lr=1e-3).param_groups) & {"up.weight", "up.bias"}


def test_muon_with_adamw_equals_both_stepped_by_hand(monkeypatch):
    monkeypatch.setattr(muon, "iteration_dtype", lambda *types: torch.bfloat16)
    ours, theirs = model(), model()
    optimizer = optimizers.muon(ours, lr=1e-2)
    matrices = [p for name, p in theirs.named_parameters() if name in MATRICES]
    decayed = [theirs.positions, theirs.head.weight]
    rest = [p for p in theirs.parameters() if not any(p is q for q in matrices + decayed)]
    hand = [
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(decayed, lr=1e-2, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0),
    ]
    for step in range(5):
        train(ours, optimizer, 1, start=step)
        tokens = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(step))
        theirs.zero_grad()
        loss = nn.functional.cross_entropy(theirs(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        for part in hand:
            part.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # Newton-Schulz runs in bfloat16: rounding of the other parts' fused kernel shows through.
        torch.testing.assert_close(mine, other, atol=2e-3, rtol=0, msg=name)


def matrices_and_gradients(shapes, seed, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    options = {"generator": draw, "dtype": dtype}
    matrices = [nn.Parameter(torch.randn(shape, **options)) for shape in shapes]
    for matrix in matrices:
        matrix.grad = torch.randn(matrix.shape, **options)
    return matrices


def test_in_bfloat16_muon_is_that_of_torch_bit_by_bit(monkeypatch):
    monkeypatch.setattr(muon, "iteration_dtype", lambda *types: torch.bfloat16)
    options = {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.9}
    ours, theirs = (matrices_and_gradients([(8, 8), (5, 12), (12, 5)], seed=0) for _ in range(2))
    optimizers_of_both = (
        muon.Muon(ours, **options),
        torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options),
    )
    for _ in range(3):
        for optimizer in optimizers_of_both:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


def test_matrices_of_one_shape_are_stepped_as_each_alone(monkeypatch):
    options = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9}
    monkeypatch.setattr(muon, "MAX_BATCH", 2 * 12 * 5 + 1)
    shapes = [(5, 12), (8, 8), (12, 5), (5, 12), (5, 12), (12, 5)]
    together, alone = (
        matrices_and_gradients(shapes, seed=0, dtype=torch.float64) for _ in range(2)
    )
    alone[1].grad = together[1].grad = None
    batches = [[x.shape for x in batch] for batch in muon.batch_by_shape(together)]
    assert [len(x) for x in batches] == [2, 1, 1, 2]
    optimizers_of_both = [
        muon.Muon(together, **options),
        *(muon.Muon([x], **options) for x in alone),
    ]
    for _ in range(3):
        for optimizer in optimizers_of_both:
            optimizer.step()
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8)])
def test_orthogonalising_gives_the_singular_vectors(shape):
    (matrix,) = matrices_and_gradients([shape], seed=1)
    options = {"coefficients": (2.0, -1.5, 0.5), "steps": 60, "eps": 1e-7}
    # These coefficients converge; the usual ones stay near 1.
    found = muon.orthogonalize(matrix.grad, dtype=torch.float64, **options)
    left, _, right = torch.linalg.svd(matrix.grad.double(), full_matrices=False)
    torch.testing.assert_close(found, left @ right, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("device", "capabilities", "expected"),
    [
        ("cuda", {}, torch.bfloat16),
        ("cpu", {"avx2": True, "avx512_bf16": False}, torch.float32),
        ("cpu", {"avx512_bf16": True}, torch.bfloat16),
        ("cpu", {"amx_bf16": True}, torch.bfloat16),
        ("cpu", {"neon": True, "bf16": True}, torch.bfloat16),
        ("cpu", {"neon": True}, torch.float32),
    ],
)
def test_the_iteration_has_the_type_that_the_device_is_fast_at(
    monkeypatch, device, capabilities, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert muon.iteration_dtype.__wrapped__(device, torch.float32) is expected
    assert muon.iteration_dtype.__wrapped__(device, torch.float64) is torch.float64


def test_updates_of_both_parts_are_of_one_size():
    net = model()
    before = copy.deepcopy(net)
    train(net, optimizers.muon(net, lr=1e-2, weight_decay=0.0), 1)
    sizes = {
        name: (mine - old).square().mean().sqrt().item() / 1e-2
        for (name, mine), old in zip(net.named_parameters(), before.parameters(), strict=True)
    }
    assert 0.1 < sizes["up.weight"] < 0.4  # the aim is 0.2, AdamW's usual size
    assert 0.5 < sizes["head.weight"] <= 1.01  # AdamW's first step is the sign of the gradient


@pytest.mark.parametrize("make", [optimizers.adamw, optimizers.muon])
def test_resuming_continues_bit_by_bit(make, tmp_path):
    def start():
        net = model()
        optimizer = make(net, lr=1e-2)
        return net, optimizer, schedules.cosine(optimizer, warmup_steps=2, total_steps=8)

    whole, optimizer, schedule = start()
    train(whole, optimizer, 8, schedule=schedule)

    first, optimizer, schedule = start()
    train(first, optimizer, 5, schedule=schedule)
    parts = [first.state_dict(), optimizer.state_dict(), schedule.state_dict()]
    torch.save(parts, tmp_path / "state.pt")

    second, optimizer, schedule = start()
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, state in zip([second, optimizer, schedule], states, strict=True):
        part.load_state_dict(state)
    train(second, optimizer, 3, start=5, schedule=schedule)
    for expected, found in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_a_schedule_reaches_both_parts():
    optimizer = optimizers.muon(model(), lr=1.0)
    schedules.linear(optimizer, warmup_steps=4, total_steps=8)
    assert [g["lr"] for part in optimizer.parts for g in part.param_groups] == [0.25] * 3
    assert all(group["initial_lr"] == 1.0 for group in optimizer.param_groups)


def test_the_closure_is_called_once_with_gradients():
    net = model()
    optimizer = optimizers.muon(net, lr=1e-2)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = net(torch.zeros(1, 5, dtype=torch.long)).square().mean()
        loss.backward()
        return loss

    before = net.up.weight.clone()
    assert optimizer.step(closure) > 0
    assert calls == [True]
    assert not torch.equal(net.up.weight, before)


def test_a_copy_steps_by_itself():
    net = model()
    optimizer = optimizers.muon(net, lr=1e-2)
    train(net, optimizer, 2)
    other_net, other = copy.deepcopy((net, optimizer))
    train(net, optimizer, 2, start=2)
    train(other_net, other, 2, start=2)
    for expected, found in zip(net.parameters(), other_net.parameters(), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("make", [optimizers.adamw, optimizers.muon])
@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"lr": 1e-3, "weight_decay": -1.0}, {"lr": 1e-3, "betas": (0.9, 1.0)}]
)
def test_values_out_of_range_are_refused(make, options):
    with pytest.raises(UserError, match=list(options)[-1]):
        make(model(), **options)


def test_muon_refuses_a_momentum_out_of_range():
    with pytest.raises(UserError, match=r"momentum.*1\.0"):
        optimizers.muon(model(), lr=1e-3, momentum=1.0)


def test_muon_refuses_an_unknown_head():
    with pytest.raises(UserError, match=r"'output'.*optimizer\.head"):
        optimizers.muon(model(), lr=1e-3, head="output")


def test_muon_refuses_a_model_without_hidden_matrices():
    net = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5)})
    with pytest.raises(UserError, match="optimizer=adamw"):
        optimizers.muon(net, lr=1e-3)


@pytest.mark.parametrize("make", [optimizers.adamw, optimizers.muon])
def test_gradients_are_clipped_under_bfloat16(make):
    from lightning.pytorch.plugins import MixedPrecision

    net = model()
    optimizer = make(net, lr=1e-3)
    train(net, optimizer, 1)
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 1e-3)
    norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
    assert norm <= 1e-3 * 1.001
