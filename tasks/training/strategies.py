"""Strategies that keep a share of the model on each device: FSDP2 and tensor parallelism."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.models.stacks import TransformerLayer
from attention_zoo.tasks.configuration.build import build_model, build_task
from attention_zoo.tasks.configuration.resolved_config import find_targets
from attention_zoo.tasks.training.shared_tensors import distribute_like, gather_tensors
from attention_zoo.tasks.training.tensor_parallel import check_divisible, distribute_heads

# Of Lightning's strategies, those that every part of a run is tested with.
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")


def check_strategy(config: Mapping[str, Any]) -> None:
    """Refuse a strategy that is not tested, or that cannot train the model."""
    options = config["trainer"]
    name = options.get("strategy", "auto")
    if isinstance(name, str) and name not in STRATEGIES:
        raise UserError(
            f"trainer.strategy must be one of {', '.join(STRATEGIES)}, got {name}; to share the "
            "model among processes, choose trainer=fsdp or trainer=tensor_parallel."
        )
    target = next(find_targets(options.get("strategy")), "").rpartition(".")[2]
    kinds = {kind.__name__: kind for kind in (FullyShardedStrategy, TensorParallelStrategy)}
    if target not in kinds:
        return
    if options["precision"] in ("16-mixed", "16"):
        raise Unsupported(
            f"trainer.precision={options['precision']} scales the loss by what one process sees, "
            f"which {target} cannot; choose bf16-mixed, or trainer=ddp."
        )
    if config["compile"]:
        raise Unsupported(
            f"compile={config['compile']} needs a whole model on every device, which {target} does "
            "not keep; leave compile out, or choose trainer=ddp."
        )
    # The number that `auto` and -1 stand for shows when the processes have met.
    if isinstance(options["devices"], int) and options["devices"] > 0:
        kinds[target].check(config, options["devices"] * options.get("num_nodes", 1))


class ShardedStrategy(DDPStrategy):
    """A strategy whose parameters are DTensors. Its checkpoints are those of one device.

    Lightning's `ModelParallelStrategy` refuses `64-true`, and resumes the optimizer of one device
    with the states of other parameters where there are several groups of them.
    """

    mesh: DeviceMesh

    @staticmethod
    @abstractmethod
    def check(config: Mapping[str, Any], size: int) -> None:
        """Raise Unsupported or UserError if `size` ranks cannot share the model of a config."""

    @abstractmethod
    def shard(self, task: Any) -> None:
        """Make DTensors of the parameters of a task, in place."""

    def setup_environment(self) -> None:
        super().setup_environment()
        self.mesh = init_device_mesh(self.root_device.type, (self.world_size,))

    def setup(self, trainer: Trainer) -> None:
        task: Any = self.lightning_module
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(task)
        self.model_to_device()
        if not any(isinstance(parameter, DTensor) for parameter in task.parameters()):
            self.shard(task)
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return gather_tensors(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return gather_tensors(super().optimizer_state(optimizer))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own, saved = self.lightning_module.state_dict(), checkpoint["state_dict"]
        shared = {name: distribute_like(own.get(name), value) for name, value in saved.items()}
        self.lightning_module.load_state_dict(shared, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [x for group in optimizer.param_groups for x in group["params"]]
            numbers = [x for group in saved["param_groups"] for x in group["params"]]
            owners = dict(zip(numbers, parameters, strict=True))
            state = {
                number: {
                    name: distribute_like(owners[number], value) for name, value in entries.items()
                }
                for number, entries in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})

    def gather_task(self) -> Any:
        """Return a copy of the task with the whole weights. All ranks have to call this."""
        task: Any = self.lightning_module
        weights = self.lightning_module_state_dict()
        with torch.random.fork_rng(devices=[]):
            copy = build_task(task.config, task.tokenizer)
        self.precision_plugin.convert_module(copy)
        copy.load_state_dict(weights)
        return copy.to(self.root_device)


class FullyShardedStrategy(ShardedStrategy):
    """Data parallelism with a share of weights, gradients and optimizer state on each device.

    A layer is gathered when it computes; in evaluation the whole model is, since the ranks generate
    text of different lengths. Source: Zhao et al. 2023, arXiv:2304.11277, as FSDP2.
    """

    @staticmethod
    def check(config: Mapping[str, Any], size: int) -> None:
        with torch.device("meta"):
            check_shardable(build_model(config, vocabulary_size=1, pad_id=0))

    def shard(self, task: Any) -> None:
        model: nn.Module = task.model
        check_shardable(model)
        for module in model.modules():
            if isinstance(module, TransformerLayer):
                fully_shard(module, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh)
        for method in ("encode", "decode"):
            if hasattr(model, method):
                register_fsdp_forward_method(model, method)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._gather(False)
        return super().training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        self._gather(True)
        return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        self._gather(True)
        return super().test_step(*args, **kwargs)

    def _gather(self, whole: bool) -> None:
        """Gather all layers until further notice, or only the one that computes."""
        assert self.lightning_module is not None
        for module in self.lightning_module.modules():
            if isinstance(module, FSDPModule):
                module.set_reshard_after_forward(not whole, recurse=False)
                if whole:
                    module.unshard()
                else:
                    module.reshard()


class TensorParallelStrategy(ShardedStrategy):
    """Each device computes a share of the heads and of the feed-forward; all take the same batches.

    Source: Shoeybi et al. 2019, arXiv:1909.08053.
    """

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": 1, "rank": 0}

    @staticmethod
    def check(config: Mapping[str, Any], size: int) -> None:
        check_divisible(config, size)

    def shard(self, task: Any) -> None:
        distribute_heads(task, self.mesh)


def check_shardable(model: nn.Module) -> None:
    """Raise Unsupported for a model with a parameter that FSDP2 cannot share."""
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise Unsupported(
            f"trainer=fsdp shares the first axis of every parameter, and {scalars[0]} has none: "
            "choose another attention or position, or trainer=ddp."
        )
