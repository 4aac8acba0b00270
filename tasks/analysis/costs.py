"""Count what a model costs before it is trained: FLOPs of training, bytes of decoding.

Both are counted on a copy of the model, so that the model itself, its gradients and the random
state stay as they are. `data` are prepared and set up.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo.attention.base import take_auxiliary_loss
from attention_zoo.caches import GrowingTensor
from attention_zoo.errors import Unsupported
from attention_zoo.models import Seq2Seq
from attention_zoo.tasks.data.base import PreparedData

if TYPE_CHECKING:
    from attention_zoo.tasks.training.task import Task

T = TypeVar("T")
KERNELS = (  # of scaled dot product attention, by their names among the operators
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def training_flops_per_token(task: "Task", data: PreparedData) -> float:
    """Count the FLOPs of a forward and a backward pass, per target token.

        2 · multiply-adds of all matrix products and convolutions / target tokens

    They are counted on one example of the data, of the mean length that is trained on, without
    padding, so that the result times `tokens_seen` is what a training takes. Products are counted
    as they are computed: one whose result is masked counts, one that a mechanism skips does not.
    Scaled dot product attention is counted in its plain form, since a fused kernel computes the
    same, and so are the backends of GPUs. Elementwise work (norms, activations, softmax, short
    convolutions of single channels), lookups, transforms, the solving of triangles and the
    optimiser are not counted.
    """

    def count(task: "Task") -> float:
        task.train()
        with count_flops() as counter:
            logits, targets = task.predict_batch(data.example_batch())
            auxiliary = take_auxiliary_loss(task.model)
            loss = logits.sum()
            (loss if auxiliary is None else loss + auxiliary).backward()
        return counter.get_total_flops() / targets.numel()

    return count_on_copy(task, count)


def count_flops() -> FlopCounterMode:
    """Return a context that counts FLOPs as `training_flops_per_token` says."""
    aten = torch.ops.aten
    forward = {getattr(aten, name): attention_flops for name in KERNELS}
    backward = {getattr(aten, f"{name}_backward"): attention_backward_flops for name in KERNELS}
    return FlopCounterMode(display=False, custom_mapping=forward | backward)


def attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    """Count two products, from the shapes of queries [… h q c], keys and values [… k c]."""
    return 2 * q[:-1].numel() * k[-2] * (q[-1] + v[-1])


def attention_backward_flops(_: torch.Size, *inputs: Any, **__: Any) -> int:
    """Count four products: a kernel that computes the scores again does what others need not."""
    return 2 * attention_flops(*inputs)


def decode_state_bytes(task: "Task", data: PreparedData) -> int | None:
    """Count the bytes that decoding caches of one sequence, in all layers, in float32.

    The sequence is an example of the data, of the mean length that is trained on. A translation
    caches its source as well. A model without cached decoding has None.
    """

    @torch.no_grad()
    def count(task: "Task") -> int | None:
        model: Any = task.model.eval()
        example = data.example_batch()
        try:
            cache = model.new_cache()
        except Unsupported:
            return None
        if isinstance(model, Seq2Seq):
            source_mask = example.source != model.pad_id
            memory = model.encode(example.source, source_mask)
            model.decode(example.target[:, :-1], memory, source_mask, cache=cache)
        else:
            model(example.inputs, cache=cache)
        return cache_bytes(cache)

    return count_on_copy(task, count)


def cache_bytes(cache: Any) -> int:
    """Count the bytes of all real numbers in a cache; positions are whole numbers.

    Tokens may lie in a larger buffer, in which others find room later; it is not counted.
    """
    if isinstance(cache, GrowingTensor):
        return 0
    if isinstance(cache, Tensor):
        return cache.nbytes if cache.is_floating_point() else 0
    if isinstance(cache, Mapping):
        cache = [*cache.values()]
    if isinstance(cache, list | tuple):
        return sum(map(cache_bytes, cache))
    return cache_bytes(vars(cache)) if hasattr(cache, "__dict__") else 0


def count_on_copy(task: "Task", count: Callable[["Task"], T]) -> T:
    """Return what a function counts on a copy of a task.

    The copy is on the meta device, where nothing is computed. If the model has to read its numbers,
    a copy on the task's own device gives the same count.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return count(copy_task(task, device="meta"))
        except RuntimeError:
            return count(copy_task(task, device=None))


def copy_task(task: "Task", device: str | None) -> "Task":
    """Copy a task to a device, with backends that run on any device."""
    # What the memo holds is shared by the copy, and its tensors take no memory in between.
    memo: dict[int, Any] = {id(task.tokenizer): task.tokenizer}
    if device is not None:
        for parameter in task.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.to(device), parameter.requires_grad)
        for buffer in task.buffers():
            memo[id(buffer)] = buffer.to(device)
    copied = deepcopy(task, memo)
    for module in copied.modules():
        if getattr(module, "backend", None) in ("flex", "fla"):  # They train on GPUs only.
            choices: Any = module.backends
            module.backend = choices[0]
    return copied
