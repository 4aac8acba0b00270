"""Find the checkpoint that a run goes on from, and refuse what would make it another training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.resolved_config import flatten
from attention_zoo.tasks.run_folder import RunFolder, relative_to_cwd
from attention_zoo.tasks.task_spec import task_spec
from attention_zoo.tasks.training.checkpoints import (
    check_resumable,
    last_checkpoint,
    read_checkpoint,
)
from attention_zoo.tasks.views.console import format_override, print_line
from attention_zoo.tasks.wording import pluralize

# Options and groups of which a run may go on with other values than those in its checkpoint.
# They do not change what is learnt, or are compared by what the prepared data are.
FREE = (
    *("callbacks", "choices", "ckpt_override", "ckpt_path", "compile", "debug", "decoding"),
    *("experiment", "fail_fast", "hparams_search", "jobs", "lengths", "logger", "overwrite"),
    *("paths", "seeds", "stride", "test", "data.cache_dir", "data.num_workers", "data.probes"),
    *("data.root", "trainer.default_root_dir", "trainer.detect_anomaly", "trainer.deterministic"),
    *("trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.log_every_n_steps"),
    *("trainer.num_sanity_val_steps", "trainer.profiler", "strict", "task.bleu_tokenizer"),
    "task.non_finite",
)
# The length of the run, and the devices that it has: obeyed, and said.
OBEYED = (
    *("trainer.accelerator", "trainer.devices", "trainer.max_epochs", "trainer.max_steps"),
    *("trainer.max_time", "trainer.num_nodes", "trainer.strategy"),
)
# Those that `ckpt_override` may name.
OVERRIDABLE = ("optimizer", "schedule", "trainer")


@dataclass
class Resumed:
    """The checkpoint that a training goes on from."""

    path: Path
    checkpoint: dict[str, Any]
    obeyed: list[str]  # options that differ from those in the checkpoint

    @property
    def step(self) -> int:
        """Return the number of steps that it has been trained for."""
        return self.checkpoint["global_step"]


def checkpoint_to_resume(config: dict[str, Any], console: Console) -> Resumed | None:
    """Return the checkpoint that `ckpt_path` names, if it fits this training; None if none.

    Say which it is and what it does not decide. Raise UserError if the folder of the run holds a
    run that would be overwritten.
    """
    folder, named = RunFolder(Path(config["paths"]["run"]).resolve()), config["ckpt_path"]
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    path = None if named is None else Path(named)
    if named == "last":
        path = last_checkpoint(folder, Path(config["paths"]["logs"]), task_spec(config).name)
    is_own = path is not None and RunFolder.of_checkpoint(path).path.resolve() == folder.path
    if folder.holds_run and not is_own and not config["overwrite"] and is_first:
        raise UserError(
            f"{relative_to_cwd(folder.path)} holds a run already: go on with ckpt_path=last, "
            "replace it with overwrite=true, or choose another hydra.run.dir."
        )
    if path is None:
        return None
    path = relative_to_cwd(path)
    checkpoint = read_checkpoint(path)
    check_resumable(path, checkpoint)
    obeyed = check_same_training(path, checkpoint["attention_zoo"]["config"], config)
    is_done, steps = False, checkpoint["global_step"]
    for unit, done in (("step", steps), ("epoch", checkpoint["epoch"])):
        limit = config["trainer"][f"max_{unit}s"]
        if limit is not None and 0 <= limit < done:
            raise UserError(
                f"{path} has been trained for {pluralize(done, unit)} already; set "
                f"trainer.max_{unit}s to that or more, got {limit}."
            )
        is_done |= limit == done
    start = ", with its validation" if checkpoint["attention_zoo"].get("validation_due") else ""
    end = " No step is left: its weights are scored." if is_done else ""
    print_line(console, f"Going on from {path}, after step {steps}{start}.{end}")
    for line in obeyed:
        print_line(console, f"  {line}")
    return Resumed(path, checkpoint, obeyed)


def describe_resumed(resumed: Resumed | None) -> dict[str, Any]:
    """Return what a run went on from, for `results.json`; nothing if it began anew."""
    if resumed is None:
        return {}
    origin = {"ckpt_path": str(resumed.path), "step": resumed.step}
    return {"resumed": origin | {"obeyed": resumed.obeyed}}


def is_among(option: str, names: Any) -> bool:
    """Return whether an option is one of the names, or belongs to a group among them."""
    return any(option == name or option.startswith(f"{name}.") for name in names)


def differing_options(
    stored: Mapping[str, Any], composed: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the options that change a training, as name: (value in the checkpoint, value now).

    An option that a config does not have counts as null, as does an empty list. The width that
    `match` has found is found again.
    """
    then, now = (
        {name: None if value == "[]" else value for name, value in flatten(config)}
        for config in (stored, composed)
    )
    if composed.get("match") is not None:
        then["model.ffn_dim"] = now["model.ffn_dim"]
    # Of the callbacks, only the average is a part of what a run gives.
    averaging = [x for x in ({*then} | {*now}) if x == "callbacks.averaging._target_"]
    return {
        name: (then.get(name), now.get(name))
        for name in [*then, *(x for x in now if x not in then)]
        if then.get(name) != now.get(name) and (name in averaging or not is_among(name, FREE))
    }


def check_same_training(
    path: Path, stored: Mapping[str, Any], composed: Mapping[str, Any]
) -> list[str]:
    """Return what differs and is obeyed, a line each; raise UserError for any other difference."""
    override = composed["ckpt_override"]
    for name in override:
        if not is_among(name, OVERRIDABLE):
            raise UserError(
                f"ckpt_override must be a list of {', '.join(OVERRIDABLE)} or of their options, "
                f"got {name!r}."
            )
    obeyed = []
    for name, values in differing_options(stored, composed).items():
        then, now = map(format_override, values)
        of_other_kind = name.endswith("_target_") and name.startswith("optimizer")
        if is_among(name, OBEYED) or (is_among(name, override) and not of_other_kind):
            obeyed.append(f"{name}={now} (the checkpoint has {then})")
            continue
        group = name.partition(".")[0]
        remedy = f"Go on with {name}={then}"
        if group in OVERRIDABLE and not of_other_kind:
            remedy += f", or ask for the other value: ckpt_override=[{group}]"
        elif group == "data":
            remedy += f", or start a new training from its weights: init_from={path}"
        raise UserError(f"{path} was trained with {name}={then}, got {name}={now}. {remedy}.")
    return obeyed


def check_same_data(path: Path, checkpoint: Mapping[str, Any], data: Any) -> None:
    """Raise UserError if the prepared data, or their vocabulary, are not those of a checkpoint."""
    stored = checkpoint["attention_zoo"]
    if stored["tokenizer"] != data.tokenizer.state():
        raise UserError(
            f"{path} was trained with another vocabulary than the tokenizer has now: its ids would "
            "stand for other pieces. Go on with the data and the tokenizer of that run, or start a "
            f"new training from its weights and its tokenizer: init_from={path}."
        )
    fingerprint = stored.get("data_fingerprint", data.fingerprint)  # Version 0.2 stored none.
    if fingerprint != data.fingerprint:
        raise UserError(
            f"{path} was trained on other data: their fingerprint was {fingerprint[:12]}, and is "
            f"{data.fingerprint[:12]} now. Go on with the data of that run, unchanged, or "
            f"start a new training from its weights: init_from={path}."
        )
