"""`attention-zoo train`: compose, train, score, and fill the folder of the run."""

import math
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from attention_zoo.errors import TrainingDiverged, UserError
from attention_zoo.tasks.analysis.costs import decode_state_bytes, training_flops_per_token
from attention_zoo.tasks.analysis.length_report import METRIC_PREFIX
from attention_zoo.tasks.analysis.lengths import (
    LengthDataModule,
    check_lengths,
    report_lengths,
    score_lengths,
    training_length,
)
from attention_zoo.tasks.commands.exit_codes import INTERRUPTED
from attention_zoo.tasks.commands.warning_filters import silence_libraries
from attention_zoo.tasks.configuration.build import build_task, instantiate, parameter_counts
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.configuration.resolved_config import (
    flat_hyperparameters,
    with_choice_names,
)
from attention_zoo.tasks.configuration.validation import validate
from attention_zoo.tasks.run_folder import RunFolder, relative_to_cwd
from attention_zoo.tasks.sweeps.matching import check_match, match_baseline
from attention_zoo.tasks.task_spec import task_spec
from attention_zoo.tasks.training.callbacks.averaging import CheckpointAveraging
from attention_zoo.tasks.training.callbacks.periodic_inspection import InspectionCallback
from attention_zoo.tasks.training.callbacks.samples import Samples
from attention_zoo.tasks.training.callbacks.throughput import History, Throughput
from attention_zoo.tasks.training.checkpoints import last_checkpoint, read_checkpoint
from attention_zoo.tasks.training.loggers.loggers import (
    create_loggers,
    finish_loggers,
    log_artifact,
    log_summary,
    summary_metrics,
)
from attention_zoo.tasks.training.manifest import collect_environment
from attention_zoo.tasks.training.memory import peak_memory_bytes, reset_peak_memory
from attention_zoo.tasks.training.task import Task, logged_metrics
from attention_zoo.tasks.views.console import (
    print_config_tree,
    print_data_report,
    print_results,
    print_samples,
)


@dataclass
class Training:
    """What a training is made of.

    Args:
        config: the resolved config.
        task: with the new model.
        data: set up.
        costs: what the model costs, for `results.json`.
        length_tests: the tests at `lengths`, if there are any.
        matched: what `match` has made equal to the baseline, if anything.
        console: where the training prints.
        loggers: of the run.
    """

    config: dict[str, Any]
    task: Task
    data: Any
    costs: dict[str, Any]
    length_tests: LengthDataModule | None
    matched: dict[str, Any] | None
    console: Console
    loggers: list[Logger] = field(default_factory=list)

    @property
    def folder(self) -> RunFolder:
        """The folder of the run, by the path that is shortest to copy."""
        return RunFolder(relative_to_cwd(Path(self.config["paths"]["run"])))


def run(config: dict[str, Any], invocation: Invocation) -> float | None:
    """Train what the config describes.

    Returns:
        The validation loss, for sweepers that minimise it.
    """
    validate(config)
    check_lengths(config)
    check_match(config)
    if config["seeds"] is not None:
        raise UserError(
            f"seeds={config['seeds']} repeats the jobs of a sweep: give it on the command line "
            "with -m. A single run has a seed, such as seed=1."
        )
    silence_libraries()
    console = Console(quiet=rank_zero_only.rank != 0)  # type: ignore[attr-defined]
    if invocation.inferred_task:
        data_choice = f"data={config['choices']['data']}"
        console.print(f"{data_choice}: {invocation.inferred_task}", highlight=False)
    training = prepare(config, console)
    resumed = checkpoint_to_resume(config)
    training.loggers = create_loggers(config, job_type=invocation.command, resumed=resumed)
    exit_code = 1
    try:
        metrics = fit_and_score(training, resumed)
        exit_code = 0
    except KeyboardInterrupt:
        exit_code = INTERRUPTED
        last = training.folder.last_checkpoint
        if last.exists():
            console.print(f"Interrupted. Go on with ckpt_path={last}", soft_wrap=True)
        raise
    finally:
        finish_loggers(training.loggers, exit_code)
    return metrics.get("val/loss")


def prepare(config: dict[str, Any], console: Console) -> Training:
    """Prepare the data and build the task, and count what its model costs."""
    print_config_tree(console, with_choice_names(config))
    save_config(config)
    seed_everything(config["seed"], workers=True, verbose=False)
    data = instantiate(config["data"])
    with console.status("preparing the data"):
        data.prepare_data()
        data.setup()
    print_data_report(console, data.report)
    matched = None
    if config["match"] is not None:
        matched = match_baseline(config, data, console)
        save_config(config)
    task = build_task(config, data.tokenizer)
    if task.model.max_length is not None:
        data.check_max_length(task.model.max_length)
    costs = {
        "training_flops_per_token": training_flops_per_token(task, data),
        "decode_state_bytes": decode_state_bytes(task, data),
    }
    length_tests = create_length_tests(config, task, data)
    if config["compile"]:
        options = config["compile"] if isinstance(config["compile"], dict) else {}
        task.model.compile(**options)
    return Training(config, task, data, costs, length_tests, matched, console)


@rank_zero_only
def save_config(config: dict[str, Any]) -> None:
    """Write the resolved config into the folder of the run."""
    RunFolder(config["paths"]["run"]).write_config(config)


def checkpoint_to_resume(config: dict[str, Any]) -> Path | None:
    """Return the checkpoint that `ckpt_path` names; None if it names none.

    Raises:
        UserError: it is not of this model and task, or has been trained longer than it should be.
    """
    if config["ckpt_path"] is None:
        return None
    path, spec = Path(config["ckpt_path"]), task_spec(config)
    if config["ckpt_path"] == "last":
        path = last_checkpoint(Path(config["paths"]["logs"]), spec.name)
    checkpoint = read_checkpoint(path)
    stored = checkpoint["attention_zoo"]["config"]
    for group in ("task", "model", "attention", *spec.attention_roles, "position", "tokenizer"):
        if stored.get(group) != config.get(group):
            raise UserError(
                f"{path} was trained with {group}={stored.get(group)}, which is not what is "
                f"composed now. Resume with the overrides it was started with."
            )
    steps, limit = checkpoint["global_step"], config["trainer"]["max_steps"]
    if 0 <= limit < steps:
        raise UserError(
            f"{path} has been trained for {steps} steps already; set trainer.max_steps to that or "
            f"more, got {limit}."
        )
    return path


def fit_and_score(training: Training, resumed: Path | None) -> dict[str, Any]:
    """Train, score the best weights, and write and print the results.

    Raises:
        TrainingDiverged: the validation loss is not finite.
    """
    config, task, data = training.config, training.task, training.data
    counts = parameter_counts(task.model)
    for logger in training.loggers:
        logger.log_hyperparams(flat_hyperparameters(with_choice_names(config)) | counts)
    log_artifact(training.loggers, "config", training.folder.config_file)
    callbacks = create_callbacks(config)
    trainer = create_trainer(config, callbacks, training.loggers)
    reset_peak_memory(trainer.strategy.root_device)
    started = time.perf_counter()
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resumed, weights_only=True)
    except SystemExit:  # Lightning makes this of Ctrl-C.
        raise KeyboardInterrupt from None
    seconds = time.perf_counter() - started
    # Scoring loads a checkpoint, and with it the state that the callbacks had then.
    manifest = counts | training.costs | describe_fit(training, trainer, seconds)
    history = next(callback for callback in callbacks if isinstance(callback, History))
    val_losses = [value for _, _, value in history.points["val/loss"]]
    checkpoint = checkpoint_to_score(trainer)
    metrics = score(trainer, task, data, checkpoint, test=config["test"])
    manifest |= task.metric_signatures()
    length_metrics = {}
    if training.length_tests is not None and not has_diverged(metrics):
        manifest["lengths"] = score_lengths(
            trainer, task, training.length_tests, ckpt_path=checkpoint, weights_only=True
        )
        length_metrics = logged_metrics(trainer, METRIC_PREFIX[training.length_tests.split])
    if trainer.is_global_zero:
        training.folder.write_results(metrics | length_metrics, manifest)
        if task.outputs:
            training.folder.write_outputs("test", data.test, task.outputs)
        log_summary(
            training.loggers, summary_metrics(metrics | length_metrics | manifest, val_losses)
        )
        log_artifact(training.loggers, "checkpoint", checkpoint)
        print_outcome(training, trainer, checkpoint, metrics, length_metrics, manifest)
    if has_diverged(metrics):
        raise TrainingDiverged(f"val/loss is {metrics['val/loss']}. Try a lower optimizer.lr.")
    return metrics | length_metrics


def create_callbacks(config: dict[str, Any]) -> list[Callback]:
    """Build the callbacks of the config, and those that `results.json` needs."""
    callbacks = [instantiate(node) for node in (config["callbacks"] or {}).values()]
    throughput = next((x for x in callbacks if isinstance(x, Throughput)), None)
    if throughput is None:
        throughput = Throughput()
        callbacks.append(throughput)
    return [*callbacks, History(throughput)]


def create_trainer(
    config: dict[str, Any], callbacks: list[Callback], loggers: list[Logger]
) -> Trainer:
    """Build the Trainer of a training."""
    options = config["trainer"]
    if 0 < options["max_steps"] < options["log_every_n_steps"]:
        # A run shorter than the interval logs once, at its end.
        options = {**options, "log_every_n_steps": options["max_steps"]}
    return instantiate(
        options,
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=config["paths"]["run"],
        enable_progress_bar=any(isinstance(x, ProgressBar) for x in callbacks),
        enable_checkpointing=any(isinstance(x, Checkpoint) for x in callbacks),
    )


def describe_fit(training: Training, trainer: Trainer, seconds: float) -> dict[str, Any]:
    """Return how the weights were obtained, for `results.json`.

    The seconds of a resumed run are those of this process; tokens and curves are of the whole run.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    throughput = next(x for x in callbacks if isinstance(x, Throughput))
    history = next(x for x in callbacks if isinstance(x, History))
    inspection = sum(x.seconds for x in callbacks if isinstance(x, InspectionCallback))
    return {
        "tokens_seen": throughput.tokens,
        "tokens_per_second": round(throughput.tokens_per_second, 3),
        "seconds": round(seconds, 3),
        "inspection_seconds": round(inspection, 3),
        "peak_memory_bytes": peak_memory_bytes(trainer),
        "seed": training.config["seed"],
        "data_hash": training.data.fingerprint,
        "data_order": training.data.train_dataloader().order_hash(),
        "precision": training.config["trainer"]["precision"],
        **collect_environment(),
        **({} if training.matched is None else {"matched": training.matched}),
        "history": history.loss_curves(),
    }


def has_diverged(metrics: dict[str, Any]) -> bool:
    """Tell whether the validation loss is not finite."""
    return not math.isfinite(metrics.get("val/loss", 0.0))


def create_length_tests(config: dict[str, Any], task: Task, data: Any) -> LengthDataModule | None:
    """Create the tests at `lengths`: of the test split, or of the valid split with `test=false`."""
    if not config["lengths"]:
        return None
    model: Any = task.model
    return LengthDataModule(
        config,
        data,
        split="test" if config["test"] else "valid",
        max_length=model.max_length,
        training_length=training_length(config["data"]),
    )


def checkpoint_to_score(trainer: Trainer) -> Path | None:
    """Return the averaged checkpoint, or else the one with the lowest validation loss.

    None if the run keeps no checkpoint: the weights that it ended with are scored then.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CheckpointAveraging) and callback.path.exists():
            return callback.path
    best = trainer.checkpoint_callback
    path = best.best_model_path if isinstance(best, ModelCheckpoint) else ""
    return Path(path) if path else None


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
    length_metrics: dict[str, Any],
    manifest: dict[str, Any],
) -> None:
    """Print samples, metrics, the paths of what was written, and commands to run next."""
    console, folder = training.console, training.folder
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Samples):
            print_samples(console, callback.columns, callback.rows)
    paths = {"run": folder.path, "figures": folder.figures}
    commands = []
    if checkpoint is not None and not has_diverged(metrics):
        paths["checkpoint"] = relative_to_cwd(checkpoint)
        commands = next_commands(training, paths["checkpoint"])
    paths = {name: path for name, path in paths.items() if path.exists()}
    if "lengths" in manifest:
        paths |= report_lengths(
            console,
            metrics | length_metrics | manifest,
            folder.figures,
            training.loggers,
            trainer.global_step,
        )
    print_results(console, metrics, manifest, paths, commands)


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
