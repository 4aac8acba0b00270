"""Heat maps of what the model attends to, drawn from fixed probes."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer

from attention_zoo.capture import capture_attention, group_by_role
from attention_zoo.errors import UserError
from attention_zoo.tasks.training.callbacks.periodic_inspection import (
    InspectionCallback,
    undisturbed,
)
from attention_zoo.tasks.views.attention_record import ROLES, AttentionRecord
from attention_zoo.tasks.views.figures.heatmaps import draw_heatmaps


class Probe(NamedTuple):
    """A fixed input of a model, and what its tokens are called.

    Args:
        inputs: a batch of one: `module(*inputs)` of a tuple or list, `module(**inputs)` of a
            mapping, `module(inputs)` of anything else.
        tokens: names of the tokens.
        source_tokens: names of those that an encoder reads and cross-attention looks at, where
            they are others.
    """

    inputs: Any
    tokens: Sequence[str]
    source_tokens: Sequence[str] | None = None


class AttentionMaps(InspectionCallback):
    """Draws what the attention of a model looks at: a picture for each probe, role and layer, in
    which every head has a heat map with the tokens on both axes.

    Works with any LightningModule that holds attention of the zoo. Pictures go to
    `<folder>/probe-1-cross-layer-1.png` and so on, where newer ones replace older ones, and to
    every logger that takes images under `attention/probe-1/cross/layer-1`. Those of `steps` stay,
    in `<folder>/step-100` and so on. Rank zero draws, at validations, at `steps`, and at the end
    of training.

    Roles are `encoder` (global self-attention), `decoder` (causal self-attention) and `cross`.
    Layers and heads count from 1, layers in the order in which the model calls them.

    Args:
        folder: where the PNG files go; `figures` in the Trainer's `default_root_dir`, if not given.
        probes: what is looked at: a list of `Probe`, or how many of the lines `probes` of the data
            module, from its first. The task's `attend` reads a line: of a translation, the rows
            of the maps are the tokens that it writes, by whatever decoding it has.
        roles: to draw; `cross`, if not given, and without it all that the model has.
        layers: to draw; all, if not given.
        heads: to draw; the mean of all and each of them, if not given.
        every_n_validations: draw at every n-th validation; the end of training always draws. None:
            not at validations.
        steps: optimizer steps after which to draw as well; 0 is before the first.

    Raises:
        UserError: an option that means nothing. At the start of training: a role, layer or head
            that the model does not have, a step that it does not come to, tokens that do not fit
            the maps, or no probes.
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
        if (number := probes if isinstance(probes, int) else len(probes)) < 1:
            raise UserError(f"probes must be at least 1, got {number}.")
        lists = {"roles": roles, "layers": layers, "heads": heads, "steps": steps}
        for name, given in lists.items():
            if isinstance(given, int | str):
                raise UserError(f"{name} must be a list, such as [{given}], got {given}.")
        require("roles", roles, list(ROLES))
        if strange := [x for x in steps or () if not isinstance(x, int) or x < 0]:
            raise UserError(f"steps must be whole numbers, got {strange}.")
        self.folder = None if folder is None else Path(folder)
        self.probes = probes
        self.roles = roles
        self.layers = layers
        self.heads = heads
        self.steps = steps or ()
        self.paths: list[Path] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = trainer.estimated_stepping_batches
        if late := [step for step in self.steps if step > last]:
            raise UserError(f"steps must be among the {last} of this training, got {late}.")
        # On all ranks: none may go on where another stops.
        with self.counted(pl_module), undisturbed(pl_module):
            self.check(trainer, pl_module)
        self._step = trainer.global_step - 1
        self._draw_at_steps(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._draw_at_steps(trainer, pl_module)

    def look(self, trainer: Trainer, task: Any) -> None:
        """Draw all probes; `paths` then names the files."""
        self.draw(trainer, task, self._folder(trainer))

    def draw(self, trainer: Trainer, task: Any, folder: Path) -> None:
        """The same, into a folder."""
        from attention_zoo.tasks.training.loggers.loggers import log_image

        folder.mkdir(parents=True, exist_ok=True)
        self.paths = []
        heads = None if self.heads is None else [head - 1 for head in self.heads]
        for number, reading in enumerate(self.readings(trainer, task), start=1):
            for role, layer in self.chosen(reading):
                path = folder / f"probe-{number}-{role}-layer-{layer}.png"
                draw_heatmaps(reading, role, layer - 1, heads).savefig(path)
                key = f"attention/probe-{number}/{role}/layer-{layer}"
                log_image(trainer.loggers, key, path, trainer.global_step)
                self.paths.append(path)

    def readings(self, trainer: Trainer, task: Any) -> Iterator[AttentionRecord]:
        """What the model looks at in each probe."""
        if isinstance(self.probes, int):
            lines = trainer.datamodule.probes[: self.probes]  # type: ignore[attr-defined]
            return (task.attend(line) for line in lines)
        return (read(trainer, task, probe) for probe in self.probes)

    def chosen(self, reading: AttentionRecord) -> Iterator[tuple[str, int]]:
        """The roles and layers to draw of a reading.

        Raises:
            UserError: they, or the heads, are not there.
        """
        there = list(reading.maps)
        roles = self.roles or (["cross"] if "cross" in there else there)
        require("roles", roles, there)
        for role in roles:
            maps = reading.maps[role]
            numbers = range(1, len(maps) + 1)
            require(f"layers of {role}", self.layers, numbers)
            for layer in self.layers or numbers:
                require(f"heads of {role}", self.heads, range(1, len(maps[layer - 1]) + 1))
                yield role, layer

    def check(self, trainer: Trainer, task: Any) -> None:
        """Refuse what cannot be drawn."""
        if not isinstance(self.probes, int):
            for reading in self.readings(trainer, task):
                for role, layer in self.chosen(reading):
                    try:
                        reading.weights(role, layer - 1)
                    except ValueError as error:
                        raise UserError(str(error)) from None
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        for owner, part in ((data, "probes"), (task, "attend")):
            if not hasattr(owner, part):
                raise UserError(
                    f"probes={self.probes} are lines of the data module, which the task's attend "
                    f"reads, but {type(owner).__name__} has no {part}. Give "
                    "probes=[Probe(inputs=…, tokens=[…])]."
                )
        if any(given is not None for given in (self.roles, self.layers, self.heads)):
            # One line tells which roles, layers and heads there are.
            for reading in islice(self.readings(trainer, task), 1):
                list(self.chosen(reading))

    def _draw_at_steps(self, trainer: Trainer, task: LightningModule) -> None:
        before, self._step = self._step, trainer.global_step
        if any(before < step <= self._step for step in self.steps):
            folder = self._folder(trainer) / f"step-{self._step}"
            self.look_with(partial(self.draw, folder=folder), trainer, task)

    def _folder(self, trainer: Trainer) -> Path:
        return self.folder or Path(trainer.default_root_dir) / "figures"


def read(trainer: Trainer, module: LightningModule, probe: Probe) -> AttentionRecord:
    """What a module looks at in a probe, in the precision that it is trained in.

    Raises:
        UserError: the probe is not one row, or reaches no attention of the zoo.
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
    source = probe.tokens if probe.source_tokens is None else probe.source_tokens
    maps = group_by_role(captured)
    return AttentionRecord(
        source_tokens=list(source),
        target_tokens=list(probe.tokens),
        maps={role: [layer[0].float().cpu() for layer in maps[role]] for role in maps},
    )


def require(what: str, given: Sequence[Any] | None, legal: Sequence[Any]) -> None:
    """Refuse what is not among the legal ones."""
    if given is not None and (not given or any(one not in legal for one in given)):
        choices = ", ".join(map(str, legal))
        raise UserError(f"{what} must be some of {choices}, got {list(given)}.")
