"""Tensor parallelism: each rank has some heads of every attention, and part of each feed-forward.

The output of an attention is a sum over heads, and that of a feed-forward a sum over channels: each
rank computes a part of the sum. The share of each parameter follows from the shapes of a model with
fewer heads and channels. Whether the parts of an attention add up, which they do not where heads
interact, is tried once with random weights.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from attention_zoo.attention.base import Attention
from attention_zoo.attention.projections import FirstValues, TokenProjection
from attention_zoo.errors import Unsupported, UserError
from attention_zoo.masks import Mask
from attention_zoo.models.activations import GATED_ACTIVATIONS
from attention_zoo.models.blocks import FeedForward
from attention_zoo.position.base import PositionalEncoding
from attention_zoo.tasks.configuration.build import build_model
from attention_zoo.tasks.configuration.stacks import branches_by_role, kv_sources_by_role

REMEDY = "choose another one, or trainer=fsdp or trainer=ddp."
# Parameters that are added once to a sum of parts.
OUTPUT_BIASES = (".attention.output.bias", ".feed_forward.contract.bias")

Placement = Shard | Replicate


class SumGradients(torch.autograd.Function):
    """The identity at the input of parts of a sum: the gradient is summed over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradient, ctx.group), None


class SumOutputs(torch.autograd.Function):
    """The sum over ranks at the output of its parts: the gradient is the same for all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def all_reduce(tensor: Tensor, group: Any) -> Tensor:
    """Return the sum of a tensor over the ranks of a group."""
    total = tensor.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total, group=group)
    return total


def distribute_heads(task: Any, mesh: DeviceMesh) -> None:
    """Give a task a model with this rank's share of heads and channels, as DTensors of the whole.

    Raise Unsupported or UserError for a model that cannot be divided.
    """
    config, whole, size = task.config, task.model, mesh.size()
    check_divisible(config, size)
    ids = {"vocabulary_size": task.tokenizer.vocabulary_size, "pad_id": task.tokenizer.pad_id}
    with torch.random.fork_rng(devices=[]):
        part = build_part(config, size, **ids)
    placements = compare_shapes(whole, part, size)
    tensors = dict(named_tensors(whole))
    shared: dict[Tensor, nn.Parameter] = {}  # Tied parameters stay tied.
    for prefix, module in part.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full_name = f"{prefix}.{name}"
            source = tensors[full_name]
            if parameter not in shared:
                value = distribute_tensor(source.detach(), mesh, [placements[full_name]])
                shared[parameter] = nn.Parameter(value, requires_grad=source.requires_grad)
            module.register_parameter(name, shared[parameter])
        for name, _ in module.named_buffers(recurse=False):
            full_name = f"{prefix}.{name}"
            share = take_share(
                tensors[full_name], placements[full_name], mesh.get_local_rank(), size
            )
            module._buffers[name] = share.clone()
    compute_parts(part, mesh)
    part.train(whole.training)
    task.model = part


def compute_parts(part: nn.Module, mesh: DeviceMesh) -> None:
    """Let the modules of a divided model compute with local tensors, and sum over ranks."""
    group = mesh.get_group()

    def sum_gradients(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(None if x is None else SumGradients.apply(x, group) for x in inputs)

    def sum_outputs(_: nn.Module, inputs: Any, output: Tensor) -> Any:
        return SumOutputs.apply(output, group)

    summed: set[Tensor] = set()  # parameters with a part of their gradient on each rank
    for module in part.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(sum_gradients)
            module.register_forward_hook(sum_outputs)
            summed.update(module.parameters())
        elif isinstance(module, FeedForward):
            module.expand.register_forward_pre_hook(sum_gradients)
            module.contract.register_forward_hook(sum_outputs)
            summed.update((*module.expand.parameters(), *module.contract.parameters()))
        elif isinstance(module, PositionalEncoding) and "embeddings" not in module.card.acts:
            summed.update(module.parameters())

    def use_local_tensors(child_name: str, child: nn.Module) -> None:
        owned = [
            (module, name, parameter, f"{child_name}.{prefix}.{name}".endswith(OUTPUT_BIASES))
            for prefix, module in child.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
        ]

        def replace(*_: Any) -> None:
            for module, name, parameter, added_once in owned:
                local = parameter.to_local()
                if parameter in summed and isinstance(parameter.placements[0], Replicate):
                    local = SumGradients.apply(local, group)
                module._parameters[name] = local / mesh.size() if added_once else local

        def restore(*hook_inputs: Any) -> None:
            for module, name, parameter, _ in owned:
                module._parameters[name] = parameter

        child.register_forward_pre_hook(replace)
        child.register_forward_hook(restore, always_call=True)

    for name, child in part.named_children():
        use_local_tensors(name, child)


def check_divisible(config: Mapping[str, Any], size: int) -> None:
    """Refuse a config whose model cannot be divided among `size` ranks.

    Raises:
        UserError: heads or channels that are no multiple of the size.
        Unsupported: an attention whose output is not a sum over its heads.
    """
    ids = {"vocabulary_size": 1, "pad_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole, part = build_model(config, **ids), build_part(config, size, **ids)
        for parameter in whole.parameters():
            nn.init.normal_(parameter, std=max(parameter.shape[-1:] or (1,)) ** -0.5)
        placements, tensors = compare_shapes(whole, part, size), dict(named_tensors(whole))
        parts = [deepcopy(part).eval() for _ in range(size)]
        for rank, own in enumerate(parts):
            for name, tensor in named_tensors(own):
                value = take_share(tensors[name], placements[name], rank, size)
                tensor.data.copy_(value / size if name.endswith(OUTPUT_BIASES) else value)
        for name, attention in whole.eval().named_modules():
            if isinstance(attention, Attention):
                check_sum(attention, [own.get_submodule(name) for own in parts])


def check_sum(attention: Attention, parts: list[nn.Module]) -> None:
    """Raise Unsupported if an attention is not the sum of its parts."""
    name, tokens = attention.card.name, min(40, attention.max_length or 40)
    if attention.position.card.acts:
        name += f" with position={attention.position.card.name}"
    x, context = torch.randn(2, 2, tokens, attention.dim)
    inputs = (x, context) if attention.role == "cross" else (x,)
    mask = Mask()
    if "key_mask" in attention.card.masks:
        mask = Mask(
            key_mask=torch.arange(tokens) < torch.tensor([[tokens], [tokens - tokens // 4]])
        )
    values = draw_first_values(attention, parts, tokens)
    expected = attention(*inputs, mask=mask, first_values=values[0])
    pairs = zip(parts, values[1:], strict=True)
    total = sum(part(*inputs, mask=mask, first_values=own) for part, own in pairs)
    if not torch.allclose(total, expected, rtol=1e-3, atol=1e-4):
        raise Unsupported(
            f"trainer=tensor_parallel divides heads, and attention={name} is not the sum of what "
            f"its heads compute alone: {REMEDY}"
        )
    attention.train()(*inputs, mask=mask, first_values=values[0])
    if attention.auxiliary_loss is not None:
        raise Unsupported(
            f"trainer=tensor_parallel divides heads, and attention={name} has a loss over all of "
            f"them: {REMEDY}"
        )


def draw_first_values(
    attention: Attention, parts: list[nn.Module], tokens: int
) -> list[FirstValues]:
    """Draw values of the first layer for an attention, and for its parts what each has of them."""
    modules = [attention, *parts]
    drawn = [FirstValues() for _ in modules]
    for name, whole in attention.named_children():
        if not isinstance(whole, TokenProjection) or whole.mixing is None:
            continue
        value = torch.randn(2, tokens, whole.out_features)
        for index, (module, own) in enumerate(zip(modules, drawn, strict=True)):
            part: Any = module.get_submodule(name)
            is_divided = part.out_features != whole.out_features
            share = value.chunk(len(parts), -1)[index - 1] if is_divided else value
            own.values[whole.label] = share
    return drawn


def build_part(config: Mapping[str, Any], size: int, **ids: int) -> nn.Module:
    """Build the model of a config with a `size`-th of the heads and of the feed-forward."""
    model = config["model"]
    if model["activation"] in GATED_ACTIVATIONS:
        raise Unsupported(
            "trainer=tensor_parallel divides the feed-forward's channels, which model.activation="
            f"{model['activation']} has in pairs: {REMEDY}"
        )
    if sharing := kv_sources_by_role(config):
        raise Unsupported(
            "trainer=tensor_parallel does not divide layers that read the keys and values of "
            f"others, which {next(iter(sharing))} has: give them their own (stack.pattern without "
            "capital letters, no share_kv), or choose trainer=fsdp or trainer=ddp."
        )
    part = deepcopy(dict(config))
    if model["ffn_dim"] is not None:
        part["model"]["ffn_dim"] = divide("model.ffn_dim", model["ffn_dim"], size)
    for path, attention, _ in chain(*branches_by_role(config).values()):
        if "heads" not in attention:
            raise Unsupported(
                f"trainer=tensor_parallel divides heads, and {path}={attention['name']} has none "
                f"to divide: {REMEDY}"
            )
        sizes = {"heads": divide("model.heads", attention["heads"], size)}
        if attention.get("kv_heads") is not None:
            sizes["kv_heads"] = divide(f"{path}.kv_heads", attention["kv_heads"], size)
        if "head_dim" in attention and attention["head_dim"] is None:
            sizes["head_dim"] = model["dim"] // attention["heads"]
        node = part
        for key in path.split("."):
            node = node[key]
        node.update(sizes)
    try:
        return build_model(part, **ids)
    except UserError as error:
        raise Unsupported(
            f"trainer=tensor_parallel cannot divide the heads among {size} processes: {error}"
        ) from None


def divide(name: str, value: int, size: int) -> int:
    """Return a share of a size, or raise UserError if there is none."""
    if value % size:
        raise UserError(
            f"{name} must be a multiple of the {size} processes of trainer=tensor_parallel, got "
            f"{value}; change it or trainer.devices."
        )
    return value // size


def compare_shapes(whole: nn.Module, part: nn.Module, size: int) -> dict[str, Placement]:
    """Return the axis that ranks share of each parameter and buffer, or that all have it whole."""
    placements: dict[str, Placement] = {}
    tensors = dict(named_tensors(part))
    for name, tensor in named_tensors(whole):
        shape = tensors[name].shape
        divided = [axis for axis, length in enumerate(tensor.shape) if length != shape[axis]]
        if len(divided) > 1 or any(tensor.shape[x] != size * shape[x] for x in divided):
            raise Unsupported(
                f"trainer=tensor_parallel divides heads, and {name} of shape {[*tensor.shape]} "
                f"belongs to all heads of its attention: {REMEDY}"
            )
        placements[name] = Shard(divided[0]) if divided else Replicate()
    return placements


def take_share(tensor: Tensor, placement: Placement, rank: int, size: int) -> Tensor:
    """Return what a rank has of a tensor."""
    return tensor.chunk(size, placement.dim)[rank] if isinstance(placement, Shard) else tensor


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all parameters and buffers, tied ones under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
