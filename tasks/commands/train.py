"""`attention-zoo train`: compose, train, score, and fill the folder of the run."""

import math
import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from attention_zoo.errors import TrainingDiverged, UserError
from attention_zoo.tasks.analysis import lengths
from attention_zoo.tasks.analysis.costs import decode_state_bytes, training_flops_per_token
from attention_zoo.tasks.analysis.length_report import METRIC_PREFIX
from attention_zoo.tasks.commands.warning_filters import silence_libraries
from attention_zoo.tasks.configuration.build import (
    build_task,
    instantiate,
    parameter_counts,
    refusal,
)
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.configuration.resolved_config import (
    flat_hyperparameters,
    with_choice_names,
)
from attention_zoo.tasks.configuration.validation import validate
from attention_zoo.tasks.data.base import PreparedData
from attention_zoo.tasks.exit_codes import exit_code
from attention_zoo.tasks.folder_lock import locked_folder
from attention_zoo.tasks.interruption import Interrupted
from attention_zoo.tasks.run_folder import RunFolder, going_on_without, relative_to_cwd
from attention_zoo.tasks.sweeps.jobs import JOB_FOLDER
from attention_zoo.tasks.sweeps.matching import check_match, match_baseline
from attention_zoo.tasks.task_spec import task_spec
from attention_zoo.tasks.training.callbacks.averaging import CheckpointAveraging
from attention_zoo.tasks.training.callbacks.periodic_inspection import (
    SHARDING_STRATEGIES,
    InspectionCallback,
)
from attention_zoo.tasks.training.callbacks.samples import Samples
from attention_zoo.tasks.training.callbacks.throughput import History, Throughput
from attention_zoo.tasks.training.checkpoint_files import WholeCheckpointIO, guard_own_files
from attention_zoo.tasks.training.fine_tuning import InitialWeights, freeze_parameters
from attention_zoo.tasks.training.loggers.loggers import (
    check_loggers,
    create_loggers,
    finish_loggers,
    log_artifact,
    log_summary,
    summary_metrics,
)
from attention_zoo.tasks.training.manifest import collect_environment
from attention_zoo.tasks.training.memory import peak_memory_bytes, reset_peak_memory
from attention_zoo.tasks.training.ranks import is_first_rank, resolve_elastic_start
from attention_zoo.tasks.training.resuming import (
    Resumed,
    check_same_data,
    checkpoint_to_resume,
    describe_resumed,
)
from attention_zoo.tasks.training.strategies import check_strategy
from attention_zoo.tasks.training.task import Task, logged_metrics
from attention_zoo.tasks.training.trainer_options import (
    check_batches,
    check_callbacks,
    check_training,
    create_callbacks,
    monitors_text,
)
from attention_zoo.tasks.views.console import (
    print_config_tree,
    print_data_report,
    print_line,
    print_run_summary,
    print_samples,
)
from attention_zoo.tasks.wording import pluralize


@dataclass
class Training:
    """What a training is made of."""

    config: dict[str, Any]
    task: Task
    data: Any
    costs: dict[str, Any]  # of the model, for `results.json`
    length_tests: lengths.LengthDataModule | None
    matched: dict[str, Any] | None  # what `match` has made equal to the baseline
    initial: InitialWeights | None  # of `init_from`
    frozen: list[str]  # the names of the parameters that are not trained
    console: Console
    folder: RunFolder
    resumed: Resumed | None = None
    loggers: list[Logger] = field(default_factory=list)


def run(config: dict[str, Any], invocation: Invocation) -> float | None:
    """Train what the config describes; return the validation loss, which sweepers minimise."""
    silence_libraries()
    refuse_options_without_effect(config, invocation)
    if not is_first_rank():  # The ranks of a run share its folder.
        return train(config, invocation)
    with locked_folder(relative_to_cwd(Path(config["paths"]["run"])), "hydra.run.dir"):
        return train(config, invocation)


def train(config: dict[str, Any], invocation: Invocation) -> float | None:
    """Check the config, train what it describes, and return the validation loss."""
    config = resolve_elastic_start(config)
    check_strategy(config)
    checked_trainer = check_training(config)
    task = validate(config)
    lengths.check_lengths(config, max_length=task.model.max_length)
    check_callbacks(checked_trainer, task)
    check_loggers(config)
    check_match(config)
    if (config["jobs"] != 1 or config["fail_fast"]) and JOB_FOLDER not in os.environ:
        raise UserError(
            f"jobs and fail_fast are for sweeps, got jobs={config['jobs']} fail_fast="
            f"{str(config['fail_fast']).lower()}: sweep with -m, or leave them out."
        )
    if config["seeds"] is not None:
        raise UserError(
            f"seeds={config['seeds']} repeats the jobs of a sweep: give it on the command line "
            "with -m. A single run has a seed, such as seed=1."
        )
    console = Console(quiet=rank_zero_only.rank != 0)  # type: ignore[attr-defined]
    if invocation.inferred_task:
        print_line(console, f"data={config['choices']['data']}: {invocation.inferred_task}")
    resumed = checkpoint_to_resume(config, console)
    initial = None
    if invocation.checkpoint is not None:
        initial = InitialWeights(config, invocation.checkpoint)
    training = prepare(config, console, initial, task.model.max_length)
    if note := check_batches(checked_trainer, training.data):
        print_line(console, note)
    if resumed is not None:
        check_same_data(resumed.path, resumed.checkpoint, training.data)
        training.resumed = resumed
    training.loggers = create_loggers(
        config,
        job_type=invocation.command,
        resumed=None if resumed is None else resumed.path,
        resumed_step=0 if resumed is None else resumed.step,
    )
    code = 1
    try:
        trainer, history = create_trainer(config, training.loggers)
        with no_orphans(trainer):
            metrics = fit_and_score(training, trainer, history)
        code = 0
    except Interrupted as error:
        code = exit_code(error)
        last = training.folder.last_checkpoint
        if last.exists():
            print_line(console, f"Go on with: {command_to_go_on(invocation, last)}")
        raise
    finally:
        finish_loggers(training.loggers, code)
    return metrics.get("val/loss")


def refuse_options_without_effect(config: dict[str, Any], invocation: Invocation) -> None:
    """Raise UserError for options that only others give an effect, which are missing."""
    if not config["strict"] and config["init_from"] is None:
        raise UserError("strict=false is about the weights of init_from: give init_from=FILE too.")
    # The sweep of a job has these, and the job goes on as it can. Of the ranks that SLURM starts,
    # only the first has the folder.
    if JOB_FOLDER in os.environ or "hydra.mode=RUN" in invocation.overrides:
        return
    if config["ckpt_override"] and config["ckpt_path"] is None:
        raise UserError("ckpt_override is about the training that ckpt_path names: give it too.")
    for override in invocation.overrides:
        if override.lstrip("+").startswith(("hydra.sweep.", "hydra/launcher=", "hydra.launcher.")):
            raise UserError(f"{override} is for sweeps: sweep with -m, or leave it out.")
    run_dirs = [x for x in invocation.overrides if x.lstrip("+") == "hydra.run.dir="]
    if run_dirs:
        raise UserError("hydra.run.dir must not be empty; give a folder, or leave it out.")
    if any(x.lstrip("+").startswith("paths.run=") for x in invocation.overrides):
        raise UserError("paths.run is the folder that hydra.run.dir=FOLDER names: give that.")


def command_to_go_on(invocation: Invocation, checkpoint: Path) -> str:
    """Return the command that goes on from a checkpoint with the overrides of this one."""
    replaced = ("ckpt_path=", "overwrite=")
    overrides = [x for x in invocation.overrides if not x.lstrip("+").startswith(replaced)]
    return shlex.join(["attention-zoo", "train", *overrides, f"ckpt_path={checkpoint}"])


def prepare(
    config: dict[str, Any],
    console: Console,
    initial: InitialWeights | None,
    max_length: int | None,
) -> Training:
    """Prepare the data and build the task, and count what its model costs.

    `max_length` is that of the model.
    """
    print_config_tree(console, with_choice_names(config))
    save_config(config)
    seed_everything(config["seed"], workers=True, verbose=False)
    options = {} if initial is None else {"tokenizer": initial.tokenizer}
    data = instantiate(config["data"], **options)
    if isinstance(data, PreparedData):  # Those of others know what they need.
        data.source.check_training()
    if max_length is not None:
        data.check_option_lengths(max_length)
    with console.status("preparing the data"):
        data.prepare_data()
        data.setup()
    print_data_report(console, data.report)
    matched = None
    if config["match"] is not None:
        matched = match_baseline(config, data, console)
        save_config(config)
    task = build_task(config, data.tokenizer)
    if initial is not None:
        initial.load(task.model)
        print_line(console, initial.describe())
    frozen = freeze_parameters(task.model, config["freeze"])
    if frozen:
        named = dict(task.model.named_parameters())
        share = sum(named[x].numel() for x in frozen) / parameter_counts(task.model)["parameters"]
        weights = pluralize(len(frozen), "weight")
        print_line(console, f"frozen: {weights}, {share:.0%} of the parameters")
    if task.model.max_length is not None:
        data.check_max_length(task.model.max_length)
    costs = {
        "training_flops_per_token": training_flops_per_token(task, data),
        "decode_state_bytes": decode_state_bytes(task, data),
    }
    length_tests = None
    if config["lengths"]:
        length_tests = lengths.LengthDataModule(
            config,
            data,
            split="test" if config["test"] else "valid",
            max_length=task.model.max_length,
            training_length=lengths.training_length(config["data"]),
        )
    if config["compile"]:
        options = config["compile"] if isinstance(config["compile"], dict) else {}
        task.model.compile(**options)
    # By the path that is shortest to copy.
    folder = RunFolder(relative_to_cwd(Path(config["paths"]["run"])))
    return Training(
        config, task, data, costs, length_tests, matched, initial, frozen, console, folder
    )


@rank_zero_only
def save_config(config: dict[str, Any]) -> None:
    """Write the resolved config into the folder of the run."""
    RunFolder(config["paths"]["run"]).write_config(config)


def fit_and_score(training: Training, trainer: Trainer, history: History) -> dict[str, Any]:
    """Train, score the best weights, and write and print the results."""
    config, task, data = training.config, training.task, training.data
    counts = parameter_counts(task.model)
    for logger in training.loggers:
        logger.log_hyperparams(flat_hyperparameters(with_choice_names(config)) | counts)
    log_artifact(training.loggers, "config", training.folder.config_file)
    task.generates_in_validation = monitors_text(trainer.callbacks)  # type: ignore[attr-defined]
    reset_peak_memory(trainer.strategy.root_device)
    started = time.perf_counter()
    resumed = None if training.resumed is None else training.resumed.path
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resumed, weights_only=True)
    except MisconfigurationException as error:
        raise refusal("trainer", error) from error
    except (Interrupted, TrainingDiverged) as error:
        cause = {"diverged": error.cause} if isinstance(error, TrainingDiverged) else {}
        end = "divergence" if cause else str(error)
        manifest = describe_fit(training, trainer, history, time.perf_counter() - started, end)
        if trainer.is_global_zero:
            with going_on_without(training.folder.results_file):
                training.folder.write_results({}, counts | training.costs | manifest | cause)
        raise
    seconds = time.perf_counter() - started
    # Scoring loads a checkpoint, and with it the state that the callbacks had then.
    end = reason_of_end(trainer)
    manifest = counts | training.costs | describe_fit(training, trainer, history, seconds, end)
    val_losses = [value for _, _, value in history.points["val/loss"]]
    checkpoint = checkpoint_to_score(trainer)
    metrics = score(trainer, task, data, checkpoint, test=config["test"])
    manifest |= task.metric_signatures()
    length_metrics = {}
    if training.length_tests is not None and not has_diverged(metrics):
        manifest["lengths"] = lengths.score_lengths(
            trainer, task, training.length_tests, ckpt_path=checkpoint, weights_only=True
        )
        length_metrics = logged_metrics(trainer, METRIC_PREFIX[training.length_tests.split])
    if trainer.is_global_zero:
        results = metrics | length_metrics
        with going_on_without(training.folder.results_file):
            training.folder.write_results(results, manifest)
        if task.outputs:
            with going_on_without(training.folder.outputs_file()):
                training.folder.write_outputs("test", data.test, task.outputs)
        log_summary(training.loggers, summary_metrics(results | manifest, val_losses))
        log_artifact(training.loggers, "checkpoint", checkpoint)
        print_outcome(training, trainer, checkpoint, metrics, results | manifest)
    if has_diverged(metrics):
        raise TrainingDiverged(f"val/loss is {metrics['val/loss']}. Try a lower optimizer.lr.")
    return metrics | length_metrics


def create_trainer(config: dict[str, Any], loggers: list[Logger]) -> tuple[Trainer, History]:
    """Build the Trainer with the callbacks of the config, and those that `results.json` needs."""
    callbacks = create_callbacks(config)
    if not any(isinstance(x, Throughput) for x in callbacks):
        callbacks.append(Throughput())
    history = History(next(x for x in callbacks if isinstance(x, Throughput)))
    trainer = instantiate(
        config["trainer"],
        logger=loggers,
        callbacks=[*callbacks, history],
        plugins=[*(config["trainer"].get("plugins") or []), *slurm_plugins()],
        default_root_dir=config["paths"]["run"],
        enable_progress_bar=any(isinstance(x, ProgressBar) for x in callbacks),
        enable_checkpointing=any(isinstance(x, Checkpoint) for x in callbacks),
    )
    if isinstance(trainer.strategy, SHARDING_STRATEGIES):
        guard_own_files(trainer.strategy)
    else:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
    return trainer, history


def slurm_plugins() -> list[Any]:
    """Return what leaves the signals of SLURM to this program.

    Lightning would save in the middle of a step, and requeue a job that trains from the start.
    """
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


@contextmanager
def no_orphans(trainer: Trainer) -> Iterator[None]:
    """End the processes that the Trainer has started where a signal ends this one."""
    try:
        yield
    except Interrupted:
        if launcher := trainer.strategy.launcher:
            launcher.kill(signal.SIGKILL)  # They may wait for this one.
        raise


def describe_fit(
    training: Training, trainer: Trainer, history: History, seconds: float, end: str
) -> dict[str, Any]:
    """Return how the weights were obtained, for `results.json`; `end` is what ended the training.

    The seconds of a resumed run are those of this process; tokens and curves are of the whole run.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    inspection = sum(x.seconds for x in callbacks if isinstance(x, InspectionCallback))
    throughput = history.throughput
    return {
        "tokens_seen": throughput.tokens,
        "tokens_per_second": round(throughput.tokens_per_second, 3),
        "seconds": round(seconds, 3),
        "inspection_seconds": round(inspection, 3),
        "peak_memory_bytes": peak_memory_bytes(trainer),
        "ended": end,
        "steps": trainer.global_step,
        "seed": training.config["seed"],
        "data": training.data.report,
        "data_hash": training.data.fingerprint,
        "data_order": training.data.train_dataloader().order_hash(),
        "precision": training.config["trainer"]["precision"],
        **collect_environment(),
        **({} if training.matched is None else {"matched": training.matched}),
        **({} if training.initial is None else {"init_from": training.initial.record()}),
        **({"frozen": training.frozen} if training.frozen else {}),
        **({"non_finite_steps": n} if (n := training.task.non_finite_steps) else {}),
        **describe_resumed(training.resumed),
        "history": history.loss_curves(),
    }


def reason_of_end(trainer: Trainer) -> str:
    """Return what ended a training: the name of an option of the Trainer, or a callback's."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return "max_steps"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return "max_epochs"
    timers = [x for x in trainer.callbacks if isinstance(x, Timer)]  # type: ignore[attr-defined]
    remaining = [timer.time_remaining() for timer in timers]
    if any(seconds is not None and seconds <= 0 for seconds in remaining):
        return "max_time"
    stopped = [x for x in trainer.early_stopping_callbacks if x.stopped_epoch]
    return type(stopped[0]).__name__ if stopped else "a callback"


def has_diverged(metrics: dict[str, Any]) -> bool:
    """Return whether the validation loss is not finite."""
    return not math.isfinite(metrics.get("val/loss", 0.0))


def checkpoint_to_score(trainer: Trainer) -> Path | None:
    """Return the averaged checkpoint, else the one of the lowest loss; None if there is none."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CheckpointAveraging) and callback.path.exists():
            return callback.path
    best = trainer.checkpoint_callback
    path = best.best_model_path if isinstance(best, ModelCheckpoint) else ""
    # A full disk may have kept it from being written.
    return Path(path) if path and Path(path).exists() else None


def score(
    trainer: Trainer, task: Task, data: Any, checkpoint: Path | None, *, test: bool
) -> dict[str, Any]:
    """Return the losses on the valid split, and all metrics on the test split."""
    options = {"datamodule": data, "ckpt_path": checkpoint, "verbose": False, "weights_only": True}
    # This is no point of the curve: the loggers have the losses during training.
    loggers, trainer.loggers = trainer.loggers, []
    trainer.validate(task, **options)
    trainer.loggers = loggers
    metrics = logged_metrics(trainer, "val/")
    # A diverged model cannot write text, and its losses say enough.
    if test and not has_diverged(metrics):
        trainer.test(task, **options)
        metrics |= logged_metrics(trainer, "test/")
    return metrics


def print_outcome(
    training: Training,
    trainer: Trainer,
    checkpoint: Path | None,
    metrics: dict[str, Any],
    results: dict[str, Any],
) -> None:
    """Print samples, metrics, paths and the next commands; draw and log what `lengths` found."""
    console, folder, step = training.console, training.folder, trainer.global_step
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Samples) and callback.rows:  # none where no step was left
            print_samples(console, callback.columns, callback.rows)
    paths = {"run": folder.path, "figures": folder.figures}
    commands = []
    if checkpoint is not None and not has_diverged(metrics):
        paths["checkpoint"] = relative_to_cwd(checkpoint)
        commands = next_commands(training, paths["checkpoint"])
    paths = {name: path for name, path in paths.items() if path.exists()}
    if "lengths" in results:
        paths |= lengths.report_lengths(console, results, folder.figures, training.loggers, step)
    print_run_summary(console, metrics, results, paths, commands)


def next_commands(training: Training, checkpoint: Path) -> list[str]:
    """Return commands that use the trained model."""
    command, prompts = task_spec(training.config).command, training.data.probes
    line = shlex.quote(prompts[0].partition("\n")[0] if prompts else "")
    return [
        f"attention-zoo {command} ckpt_path={checkpoint} {line}",
        f"attention-zoo attend ckpt_path={checkpoint} {line}",
        f"attention-zoo evaluate ckpt_path={checkpoint} split=valid",
        "attention-zoo train -m attention=multi_head,linear position=sinusoidal,rotary",
    ]
