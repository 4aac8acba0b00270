"""A model that ranks share computes what the whole one does, whatever it is made of."""

import copy
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh

from attention_zoo.attention.base import take_auxiliary_loss
from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.build import build_model
from attention_zoo.tasks.training.shared_tensors import gather_tensors
from attention_zoo.tasks.training.strategies import (
    FullyShardedStrategy,
    TensorParallelStrategy,
    check_strategy,
)
from attention_zoo.zoo import ATTENTION, POSITION
from tests.conf.test_conf import composed

IDS = {"vocabulary_size": 11, "pad_id": 0}
SIZES = ["model=tiny", "model.dim=16", "model.layers=2", "model.ffn_dim=32"]
LANGUAGE = ["task=language_modeling", "data=python_docs"]


def overrides_of_attention(name):
    roles = ATTENTION.card(name).roles
    if "causal" in roles:
        return [*LANGUAGE, f"attention={name}"]
    return [f"attention@encoder_attention={name}"]


def overrides_of_position(name):
    causal_only = "global" not in POSITION.card(name).roles
    return [*(LANGUAGE if causal_only else []), f"position={name}"]


MODELS = {f"attention={name}": overrides_of_attention(name) for name in ATTENTION}
MODELS |= {f"position={name}": overrides_of_position(name) for name in POSITION}
MODELS |= {"untied": ["model.tie_embeddings=false"], "bias": ["attention.bias=true"]}
SWITCHES = ["+model.qkv_convolution=3", "+model.value_residual=true"]
MODELS |= {"translation": SWITCHES, "kv_heads": [*LANGUAGE, *SWITCHES]}
MODELS["kv_heads"] += ["attention=grouped_query", "attention.kv_heads=2"]


def gradients(model):
    """Return a loss, and its gradients by parameter."""
    tokens = torch.arange(40).reshape(2, 20) % 10 + 1
    inputs = (tokens, tokens.flip(1)) if hasattr(model, "encoder") else (tokens,)
    logits = model(*inputs)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    loss = (logits * weights).sum()
    auxiliary = take_auxiliary_loss(model)
    loss = loss if auxiliary is None else loss + auxiliary
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return loss.item(), gather_tensors(found)


def compare_shares(rank, folder, world_size):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world_size
    )
    mesh = init_device_mesh("cpu", (world_size,))
    outcomes = {}
    for label, config in json.loads(Path(folder, "configs.json").read_text()).items():
        torch.manual_seed(0)
        whole = build_model(config, **IDS).double()
        for kind in (FullyShardedStrategy, TensorParallelStrategy):
            task = SimpleNamespace(
                model=copy.deepcopy(whole), config=config, tokenizer=SimpleNamespace(**IDS)
            )
            strategy = kind()
            strategy.mesh = mesh
            try:
                strategy.shard(task)
            except UserError as refusal:
                outcomes[f"{label} {kind.__name__}"] = str(refusal)
                continue
            whole.zero_grad()
            torch.manual_seed(1)
            expected_loss, expected = gradients(whole)
            torch.manual_seed(1)
            loss, found = gradients(task.model)
            assert found.keys() == expected.keys()
            differences = [abs(loss - expected_loss) / (1 + abs(expected_loss))]
            for name, gradient in expected.items():
                assert (gradient is None) == (found[name] is None), name
                if gradient is not None:
                    difference = (found[name] - gradient).abs().max() / (1 + gradient.abs().max())
                    differences.append(difference.item())
            outcomes[f"{label} {kind.__name__}"] = max(differences)
    Path(folder, f"{rank}.json").write_text(json.dumps(outcomes))
    torch.distributed.destroy_process_group()
    os._exit(0)  # A thread of gloo that is not joined may abort the process at its end.


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_shares_have_the_loss_and_the_gradients_of_the_whole(tmp_path, world_size):
    configs = {label: composed(*SIZES, *overrides) for label, overrides in MODELS.items()}
    Path(tmp_path, "configs.json").write_text(json.dumps(configs))
    multiprocessing.spawn(compare_shares, args=(tmp_path, world_size), nprocs=world_size, join=True)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world_size)]
    assert ranks[0].keys() == ranks[1].keys()
    for label, outcome in ranks[0].items():
        assert isinstance(outcome, str) or outcome < 1e-10, (label, outcome)
    refused = [label for label, outcome in ranks[0].items() if isinstance(outcome, str)]
    # The others are refused with a reason: see below.
    assert len(refused) < len(ranks[0]) / 4, refused


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.heads=3", "model.dim=12"], "model.heads must be a multiple of the 2 processes"),
        (["model.ffn_dim=33"], "model.ffn_dim must be a multiple of the 2 processes"),
        (["attention=grouped_query", "attention.kv_heads=1"], "attention.kv_heads must be"),
        (["model.activation=swiglu"], "model.activation=swiglu"),
        (["attention=single_head"], "single_head has none to divide"),
        (["attention=talking_heads"], "belongs to all heads"),
        (["attention=selective"], "is not the sum of what its heads compute"),
        (["attention=lightning_indexer"], "has a loss over all of them"),
        (["position=sandwich"], "multi_head with position=sandwich is not the sum"),
        (["+model.share_kv=[null,0]"], "read the keys and values of others"),
        (["stack=hybrid", "stack.pattern=bB"], "read the keys and values of others"),
        (["compile=true"], "compile=True"),
        (["trainer.precision=16-mixed"], "trainer.precision=16-mixed"),
    ],
)
def test_what_tensor_parallelism_cannot_divide_is_refused(overrides, words):
    config = composed(*SIZES, *LANGUAGE, "trainer=tensor_parallel", *overrides)
    with pytest.raises(UserError, match=words):
        check_strategy(config)


@pytest.mark.parametrize("name", ["multi_head", "linear", "reformer", "differential", "rwkv7"])
def test_attention_whose_heads_compute_alone_is_divided(name):
    check_strategy(composed(*SIZES, *LANGUAGE, "trainer=tensor_parallel", f"attention={name}"))


def test_a_parameter_without_an_axis_is_refused_by_fsdp():
    check_strategy(composed(*SIZES, "trainer=fsdp"))
    with pytest.raises(UserError, match=r"log_scale has none"):
        check_strategy(composed(*SIZES, "trainer=fsdp", "position=fire"))


@pytest.mark.parametrize("name", ["fsdp", "ddp_spawn", "deepspeed", "nonsense"])
def test_strategies_that_are_not_tested_are_refused(name):
    with pytest.raises(UserError, match=rf"trainer\.strategy must be one of .*, got {name}"):
        check_strategy(composed(*SIZES, "trainer=ddp", f"trainer.strategy={name}"))
