"""Heat maps of a model's attention over fixed probes."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer

from attention_zoo.capture import capture_attention, group_by_role, heads_by_role
from attention_zoo.errors import UserError, check_positive
from attention_zoo.tasks.run_folder import RunFolder, going_on_without
from attention_zoo.tasks.training.callbacks.periodic_inspection import (
    InspectionCallback,
    evaluation_mode,
    whole_module,
)
from attention_zoo.tasks.training.loggers.loggers import log_image
from attention_zoo.tasks.views.attention_record import ROLES, AttentionRecord, first_example
from attention_zoo.tasks.views.figures.heatmaps import draw_layers
from attention_zoo.tasks.views.figures.style import save_png


class Probe(NamedTuple):
    """A fixed input of a model, and the names of its tokens.

    Args:
        inputs: a batch of one: `module(*inputs)` of a tuple or list, `module(**inputs)` of a
            mapping, `module(inputs)` of anything else.
        tokens: names of the tokens.
        source_tokens: names of the tokens that an encoder reads and cross-attention attends to;
            default: `tokens`.
    """

    inputs: Any
    tokens: Sequence[str]
    source_tokens: Sequence[str] | None = None


class AttentionMaps(InspectionCallback):
    """Draw the attention of a model: a picture for each probe, role and layer.

    In a picture every head has a heat map with the tokens on both axes. This works with any
    LightningModule that holds attention of the zoo. Pictures go to
    `<folder>/probe-1-cross-layer-0.png` and so on, where newer ones replace older ones, and to
    every logger that takes images under `attention/probe-1/cross/layer-0`. Pictures of `steps`
    stay, in `<folder>/step-100` and so on. Rank zero draws, at validations, at `steps`, and at the
    end of training.

    Roles are `encoder` (global self-attention), `decoder` (causal self-attention) and `cross`.
    Layers and heads count from 0, layers in the order in which the model calls them.

    Args:
        folder: where the PNG files go; default: `figures` in the Trainer's `default_root_dir`.
        probes: a list of `Probe`, or a number of the data module's `probes`, from its first. These
            are lines for the task's `attend`: in a translation, the rows of the maps are the tokens
            that the task generates.
        roles: roles to draw; default: `cross`, or all roles of a model without it.
        layers: layers to draw; default: all.
        heads: heads to draw; default: each head and the mean of all.
        every_n_validations: draw at every n-th validation; the end of training always does. None:
            not at validations.
        steps: optimizer steps after which to draw as well; 0 is before the first.

    Raises:
        UserError: an option out of its range. At the start of training: a role, layer or head that
            the model does not have, a step after the last, tokens that do not fit the maps, or no
            probes.
    """

    label = "attention maps"

    def __init__(
        self,
        *,
        folder: str | Path | None = None,
        probes: int | Sequence[Probe] = 2,
        roles: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        every_n_validations: int | None = 1,
        steps: Sequence[int] | None = None,
    ) -> None:
        super().__init__(every_n_validations=every_n_validations)
        check_positive(probes=probes if isinstance(probes, int) else len(probes))
        lists = {"roles": roles, "layers": layers, "heads": heads, "steps": steps}
        for name, value in lists.items():
            if isinstance(value, int | str):
                raise UserError(f"{name} must be a list, such as [{value}], got {value}.")
        check_choices("roles", roles, list(ROLES))
        if invalid := [x for x in steps or () if not isinstance(x, int) or x < 0]:
            raise UserError(f"steps must be whole numbers, got {invalid}.")
        self.folder = None if folder is None else Path(folder)
        self.probes, self.steps = probes, steps or ()
        self.roles, self.layers, self.heads = roles, layers, heads
        self.paths: list[Path] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check_steps(trainer.estimated_stepping_batches)
        # On all ranks, so that none continues after another has stopped.
        module = whole_module(trainer, pl_module)
        with self.timed(module), evaluation_mode(module):
            self.check(trainer, module)
        self._last_step = trainer.global_step - 1
        self.on_train_batch_end(trainer, pl_module)

    def check_steps(self, last: float) -> None:
        """Raise UserError for a step after the last one."""
        if late := [step for step in self.steps if step > last]:
            raise UserError(f"steps must be among the {last} of this training, got {late}.")

    def check_training(self, trainer: Trainer, task: Any) -> None:
        super().check_training(trainer, task)
        if trainer.max_steps >= 0:
            self.check_steps(trainer.max_steps)
        # Models of others may call an attention more than once.
        if isinstance(self.probes, int) and type(task.model).__module__.startswith("attention_zoo"):
            self.selected_layers(heads_by_role(task.model))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        before, self._last_step = self._last_step, trainer.global_step
        if any(before < step <= self._last_step for step in self.steps):
            folder = self._folder(trainer) / f"step-{self._last_step}"
            self.run_on_rank_zero(partial(self.draw, folder=folder), trainer, pl_module)

    def inspect(self, trainer: Trainer, task: Any) -> None:
        self.draw(trainer, task, self._folder(trainer))

    def draw(self, trainer: Trainer, task: Any, folder: Path) -> None:
        """Draw all probes into a folder; `paths` then holds the files."""
        self.paths = []
        with going_on_without(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for number, record in enumerate(self.records(trainer, task), start=1):
                for role, layers in self.selected_layers(count_heads(record)).items():
                    figures = draw_layers(record, role, layers, self.heads)
                    for layer, figure in zip(layers, figures, strict=True):
                        path = folder / f"probe-{number}-{role}-layer-{layer}.png"
                        save_png(figure, path)
                        key = f"attention/probe-{number}/{role}/layer-{layer}"
                        log_image(trainer.loggers, key, path, trainer.global_step)
                        self.paths.append(path)

    def records(self, trainer: Trainer, task: Any) -> Iterator[AttentionRecord]:
        """Return the attention over each probe."""
        if isinstance(self.probes, int):
            lines = trainer.datamodule.probes[: self.probes]  # type: ignore[attr-defined]
            return (task.attend(line) for line in lines)
        return (record_probe(trainer, task, probe) for probe in self.probes)

    def selected_layers(self, heads: Mapping[str, list[int]]) -> dict[str, list[int]]:
        """Return the layers to draw by role, of the layers with these numbers of heads.

        Raises:
            UserError: there are no such layers, or not the heads.
        """
        roles = self.roles or (["cross"] if "cross" in heads else list(heads))
        check_choices("roles", roles, list(heads))
        selected: dict[str, list[int]] = {}
        for role in roles:
            numbers = range(len(heads[role]))
            check_choices(f"layers of {role}", self.layers, numbers)
            selected[role] = [*(self.layers or numbers)]
            for layer in selected[role]:
                check_choices(f"heads of {role}", self.heads, range(heads[role][layer]))
        return selected

    def check(self, trainer: Trainer, task: Any) -> None:
        """Refuse probes, roles, layers and heads that cannot be drawn."""
        if not isinstance(self.probes, int):
            for record in self.records(trainer, task):
                for role, layers in self.selected_layers(count_heads(record)).items():
                    for layer in layers:
                        try:
                            record.weights(role, layer)
                        except ValueError as error:
                            raise UserError(str(error)) from None
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        for owner, attribute in ((data, "probes"), (task, "attend")):
            if not hasattr(owner, attribute):
                raise UserError(
                    f"probes={self.probes} are lines of the data module for the task's attend, but "
                    f"{type(owner).__name__} has no {attribute}. Give "
                    "probes=[Probe(inputs=…, tokens=[…])]."
                )
        if any(numbers is not None for numbers in (self.roles, self.layers, self.heads)):
            # One line is enough to know the roles, layers and heads of the model.
            for record in islice(self.records(trainer, task), 1):
                self.selected_layers(count_heads(record))

    def _folder(self, trainer: Trainer) -> Path:
        return self.folder or RunFolder(trainer.default_root_dir).figures


def count_heads(record: AttentionRecord) -> dict[str, list[int]]:
    """Return the number of heads of each layer in a record, by role."""
    return {role: [len(weights) for weights in maps] for role, maps in record.maps.items()}


def record_probe(trainer: Trainer, module: LightningModule, probe: Probe) -> AttentionRecord:
    """Return the attention of a module over a probe, in the precision of the training.

    Raises:
        UserError: the probe is not one row, or the module calls no attention of the zoo.
    """
    plugin = trainer.precision_plugin
    inputs = module.transfer_batch_to_device(probe.inputs, module.device, 0)
    inputs = plugin.convert_input(inputs)
    with plugin.forward_context(), capture_attention(module) as captured:
        if isinstance(inputs, Mapping):
            module(**inputs)
        elif isinstance(inputs, tuple | list):
            module(*inputs)
        else:
            module(inputs)
    if not captured:
        raise UserError(f"{type(module).__name__} called no attention of the zoo for the probe.")
    rows = {len(weights) for _, _, weights in captured}
    if rows != {1}:
        raise UserError(f"a probe must be a batch of one, got {max(rows)} rows.")
    source_tokens = probe.tokens if probe.source_tokens is None else probe.source_tokens
    maps = first_example(group_by_role(captured))
    return AttentionRecord(list(source_tokens), list(probe.tokens), maps)


def check_choices(name: str, values: Sequence[Any] | None, choices: Sequence[Any]) -> None:
    """Refuse an empty list, and values that are not among the choices; None is all of them."""
    if values is not None and (not values or any(value not in choices for value in values)):
        listing = ", ".join(map(str, choices))
        raise UserError(f"{name} must be some of {listing}, got {list(values)}.")
