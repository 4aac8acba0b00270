"""What a model costs, counted before it is trained: FLOPs of training, bytes of decoding.

Both are counted on a model of the same config, made for it and thrown away, so that the one in
training, its gradients and the random state stay as they are.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo.attention.base import take_auxiliary_loss
from attention_zoo.errors import Unsupported
from attention_zoo.models import Seq2Seq
from attention_zoo.tasks.configuration.build import attention_by_role, build_task
from attention_zoo.tasks.data.base import PreparedData
from attention_zoo.zoo import ATTENTION

T = TypeVar("T")

OF_GPUS = ("flex", "fla")  # backends that train on nothing else


def training_flops_per_token(config: Mapping[str, Any], data: PreparedData) -> float:
    """FLOPs of a forward and a backward pass, by the number of target tokens.

        2 · multiply-adds of all matrix products and convolutions / target tokens

    Counted on one example of the data, of the mean length that is trained on, without padding, so
    that this times `tokens_seen` is what a training takes. Products are counted as they are
    computed: one whose result is masked counts, one that a mechanism skips does not. Scaled dot
    product attention is counted in its plain form, since a fused kernel computes the same, and so
    are the backends of GPUs. Elementwise work (norms, activations, softmax), lookups, transforms
    and the solving of triangles are not counted, nor is the optimiser.

    Args:
        config: the resolved one of a run.
        data: set up.
    """

    def count(task: Any) -> float:
        task.train()
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            logits, targets = task.predict_batch(data.example_batch())
            auxiliary = take_auxiliary_loss(task.model)
            loss = logits.sum()
            (loss if auxiliary is None else loss + auxiliary).backward()
        return counter.get_total_flops() / targets.numel()

    return on_a_copy(config, data, count)


def decode_state_bytes(config: Mapping[str, Any], data: PreparedData) -> int | None:
    """Bytes that decoding keeps of one sequence, all layers together, in float32.

    The sequence is an example of the data, of the mean length that is trained on; of a translation,
    what is kept of its source counts too. None where the model has no cached decoding.

    Args:
        config: the resolved one of a run.
        data: set up.
    """

    def count(task: Any) -> int | None:
        model, example = task.model.eval(), data.example_batch()
        try:
            cache = model.new_cache()
        except Unsupported:
            return None
        with torch.no_grad():
            if isinstance(model, Seq2Seq):
                key_mask = example.source != model.pad_id
                memory = model.encode(example.source, key_mask)
                model.decode(example.target[:, :-1], memory, key_mask, cache=cache)
            else:
                model(example.inputs, cache=cache)
        return bytes_in(cache)

    return on_a_copy(config, data, count)


def bytes_in(kept: Any) -> int:
    """Of all real numbers in a cache, however it is built; positions are whole numbers."""
    if isinstance(kept, Tensor):
        return kept.nbytes if kept.is_floating_point() else 0
    if isinstance(kept, Mapping):
        return sum(map(bytes_in, kept.values()))
    if isinstance(kept, list | tuple):
        return sum(map(bytes_in, kept))
    return bytes_in(vars(kept)) if hasattr(kept, "__dict__") else 0


def on_a_copy(config: Mapping[str, Any], data: PreparedData, count: Callable[[Any], T]) -> T:
    """What a function counts on a new task of the config, and on an example of the data.

    On the device without memory, where nothing is computed; on the CPU, if the model has to read
    its numbers. Both count the same.
    """
    plain = {**config, **in_plain_form(config)}

    def count_on(device: str) -> T:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return count(build_task(plain, data.tokenizer))

    try:
        return count_on("meta")
    except RuntimeError:
        return count_on("cpu")


def in_plain_form(config: Mapping[str, Any]) -> dict[str, Any]:
    """The attention of each role, by a backend that runs on any device."""
    chosen = attention_by_role(config)
    for node, options in chosen.items():
        if options.get("backend") in OF_GPUS:
            plain = ATTENTION[options["name"]].backends[0]  # type: ignore[attr-defined]
            chosen[node] = {**options, "backend": plain}
    return chosen
