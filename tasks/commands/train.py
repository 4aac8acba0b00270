"""`attention-zoo train`: compose, train, score, and leave a run folder behind."""

import math
import shlex
import time
from pathlib import Path
from typing import Any, cast

from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from rich.console import Console

from attention_zoo.errors import UserError
from attention_zoo.tasks.analysis.costs import decode_state_bytes, training_flops_per_token
from attention_zoo.tasks.analysis.length_report import PREFIX
from attention_zoo.tasks.analysis.lengths import (
    AtLengths,
    check_lengths,
    report_lengths,
    score_lengths,
    trained_at,
)
from attention_zoo.tasks.commands.exit_codes import INTERRUPTED
from attention_zoo.tasks.commands.warning_filters import quiet
from attention_zoo.tasks.configuration.build import (
    ROLE_NODES,
    build_task,
    check,
    instantiate,
    parameter_counts,
)
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.sweeps.matching import check_match, match_baseline
from attention_zoo.tasks.training.callbacks.averaging import CheckpointAveraging
from attention_zoo.tasks.training.callbacks.history import History
from attention_zoo.tasks.training.callbacks.periodic_inspection import InspectionCallback
from attention_zoo.tasks.training.callbacks.samples import Samples
from attention_zoo.tasks.training.callbacks.throughput import Throughput
from attention_zoo.tasks.training.checkpoints import newest_checkpoint, read_checkpoint
from attention_zoo.tasks.training.loggers.loggers import (
    create_loggers,
    final_figures,
    finish,
    flat_config,
    log_artifact,
    log_summary,
)
from attention_zoo.tasks.training.memory import peak_bytes, reset_peak
from attention_zoo.tasks.training.results import (
    collect_manifest,
    named,
    print_config_tree,
    print_report,
    print_results,
    print_samples,
    relative_to_cwd,
    write_outputs,
    write_results,
)
from attention_zoo.tasks.training.task import Task, logged


def run(config: dict[str, Any], call: Invocation) -> float | None:
    """Train what the config says.

    Returns:
        The validation loss, for sweepers that minimise it.
    """
    check(config)
    check_lengths(config)
    check_match(config)
    if config["seeds"] is not None:
        raise UserError(
            f"seeds={config['seeds']} repeats the jobs of a sweep: give it on the command line, "
            "beside -m. A single run has a seed, such as seed=1."
        )
    quiet()
    console = Console(quiet=rank_zero_only.rank != 0)  # type: ignore[attr-defined]
    if call.implied:
        console.print(f"data={config['choices']['data']}: {call.implied}", highlight=False)
    print_config_tree(console, named(config))
    save(config)
    seed_everything(config["seed"], workers=True, verbose=False)
    data = instantiate(config["data"])
    with console.status("preparing the data"):
        data.prepare_data()
        data.setup()
    print_report(console, data.report)
    matched = None
    if config["match"] is not None:
        matched = match_baseline(config, data, console)
        save(config)
    task = build_task(config, data.tokenizer)
    if task.model.max_length is not None:
        data.check_max_length(task.model.max_length)
    tests = lengths_to_test(config, task, data)
    if config["compile"]:
        options = config["compile"] if isinstance(config["compile"], dict) else {}
        task.model.compile(**options)
    resumed = checkpoint_to_resume(config)

    loggers = create_loggers(config, job_type=call.verb, resumed=resumed)
    exit_code = 1
    try:
        metrics = fit(config, task, data, tests, matched, loggers, resumed, console)
        exit_code = 0
    except KeyboardInterrupt:
        exit_code = INTERRUPTED
        last = relative_to_cwd(Path(config["paths"]["run"])) / "checkpoints" / "last.ckpt"
        if last.exists():
            console.print(f"Interrupted. Go on with ckpt_path={last}", soft_wrap=True)
        raise
    finally:
        finish(loggers, exit_code)
    return metrics.get("val/loss")


@rank_zero_only
def save(config: dict[str, Any]) -> None:
    """Leave the resolved config in the run's folder."""
    OmegaConf.save(config, Path(config["paths"]["run"]) / "config.yaml")


def checkpoint_to_resume(config: dict[str, Any]) -> Path | None:
    """The checkpoint that `ckpt_path` means, once it is known to be one of ours."""
    if config["ckpt_path"] is None:
        return None
    path = Path(config["ckpt_path"])
    if config["ckpt_path"] == "last":
        path = newest_checkpoint(Path(config["paths"]["logs"]), config["task"]["name"])
    checkpoint = read_checkpoint(path)
    before = checkpoint["attention_zoo"]["config"]
    for group in (
        "task",
        "model",
        "attention",
        *ROLE_NODES["translation"],
        "position",
        "tokenizer",
    ):
        if before.get(group) != config.get(group):
            raise UserError(
                f"{path} was trained with {group}={before.get(group)}, which is not what is "
                f"composed now. Resume with the overrides it was started with."
            )
    steps, limit = checkpoint["global_step"], config["trainer"]["max_steps"]
    if 0 <= limit < steps:
        raise UserError(
            f"{path} has been trained for {steps} steps already; set trainer.max_steps to that or "
            f"more, got {limit}."
        )
    return path


def fit(
    config: dict[str, Any],
    task: Task,
    data: Any,
    tests: AtLengths | None,
    matched: dict[str, Any] | None,
    loggers: list[Logger],
    resumed: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Train, score, write `results.json`, and tell what came of it."""
    counts = parameter_counts(task.model)
    flops, state = training_flops_per_token(config, data), decode_state_bytes(config, data)
    for logger in loggers:
        logger.log_hyperparams(flat_config(named(config)) | counts)
    log_artifact(loggers, "config", Path(config["paths"]["run"]) / "config.yaml")
    callbacks = [instantiate(node) for node in (config["callbacks"] or {}).values()]
    throughput = next((c for c in callbacks if isinstance(c, Throughput)), None)
    if throughput is None:
        # Whatever the callbacks: results.json says how many tokens were seen.
        throughput = Throughput()
        callbacks.append(throughput)
    history = History(throughput)
    callbacks.append(history)
    options = config["trainer"]
    if 0 < options["max_steps"] < options["log_every_n_steps"]:
        # A run shorter than the interval logs once, at its end.
        options = {**options, "log_every_n_steps": options["max_steps"]}
    trainer: Trainer = instantiate(
        options,
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=config["paths"]["run"],
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
    )
    reset_peak(trainer.strategy.root_device)
    started = time.perf_counter()
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resumed, weights_only=True)
    except SystemExit:  # What Lightning makes of Ctrl-C.
        raise KeyboardInterrupt from None
    seconds = time.perf_counter() - started
    # Before anything is scored: loading a checkpoint brings back what the callbacks were by then.
    manifest = collect_manifest(
        parameters=counts,
        training_flops_per_token=flops,
        decode_state_bytes=state,
        tokens_seen=throughput.tokens,
        tokens_per_second=throughput.tokens_per_second,
        seconds=seconds,
        looking_seconds=sum(c.seconds for c in callbacks if isinstance(c, InspectionCallback)),
        peak_memory_bytes=peak_bytes(trainer),
        seed=config["seed"],
        data_hash=data.fingerprint,
        data_order=data.train_dataloader().order_hash(),
        precision=config["trainer"]["precision"],
        matched=matched,
        history=history.curves(),
    )
    val_losses = [value for _, _, value in history.points["val/loss"]]
    run = relative_to_cwd(Path(config["paths"]["run"]))
    checkpoint = checkpoint_to_keep(trainer)
    metrics = scores(trainer, task, data, checkpoint, test=config["test"])
    manifest |= task.manifest()
    shown = metrics
    if tests is not None and not diverged(metrics):
        manifest["lengths"] = score_lengths(
            trainer, task, tests, ckpt_path=checkpoint, weights_only=True
        )
        metrics = metrics | logged(trainer, PREFIX[tests.split])
    if trainer.is_global_zero:
        write_results(run / "results.json", metrics, manifest)
        if task.outputs:
            write_outputs(run / "test_outputs.jsonl", data.test, task.outputs)
        log_summary(loggers, final_figures(metrics | manifest, val_losses))
        log_artifact(loggers, "checkpoint", checkpoint)
        for samples in (c for c in callbacks if isinstance(c, Samples)):
            print_samples(console, samples.columns, samples.rows)
        paths = {"run": run, "figures": run / "figures"}
        commands = []
        if checkpoint is not None and not diverged(metrics):
            paths["checkpoint"] = relative_to_cwd(checkpoint)
            commands = next_commands(config, paths["checkpoint"], data.probes)
        there = {word: path for word, path in paths.items() if path.exists()}
        if "lengths" in manifest:
            figures = paths["figures"]
            there |= report_lengths(
                console, metrics | manifest, figures, loggers, trainer.global_step
            )
        print_results(console, shown, manifest, there, commands)
    if diverged(metrics):
        raise UserError(
            f"training diverged: val/loss is {metrics['val/loss']}. Try a lower optimizer.lr."
        )
    return metrics


def diverged(metrics: dict[str, Any]) -> bool:
    return not math.isfinite(metrics.get("val/loss", 0.0))


def lengths_to_test(config: dict[str, Any], task: Task, data: Any) -> AtLengths | None:
    """The tests at `lengths`, of the test split, or where that is left alone of the valid split."""
    if not config["lengths"]:
        return None
    return AtLengths(
        config,
        data,
        split="test" if config["test"] else "valid",
        limit=cast("int | None", task.model.max_length),
        trained_at=trained_at(config["data"]),
    )


def checkpoint_to_keep(trainer: Trainer) -> Path | None:
    """The weights that a run is about: the averaged ones, else those of lowest validation loss.

    None where the run keeps no checkpoint: then it is about the weights it ended with.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CheckpointAveraging) and callback.path.exists():
            return callback.path
    kept = trainer.checkpoint_callback
    path = kept.best_model_path if isinstance(kept, ModelCheckpoint) else ""
    return Path(path) if path else None


def scores(
    trainer: Trainer, task: Task, data: Any, checkpoint: Path | None, *, test: bool
) -> dict[str, Any]:
    """Losses on the valid split, and all scores on the test split, of the same weights."""
    options = {"datamodule": data, "ckpt_path": checkpoint, "verbose": False, "weights_only": True}
    # Not a point of the curve: the loggers' losses are those during training.
    loggers, trainer.loggers = trainer.loggers, []
    trainer.validate(task, **options)
    trainer.loggers = loggers
    metrics = logged(trainer, "val/")
    # What diverged cannot write: its losses tell all that there is to know.
    if test and not diverged(metrics):
        trainer.test(task, **options)
        metrics |= logged(trainer, "test/")
    return metrics


def next_commands(config: dict[str, Any], checkpoint: Path, probes: list[str]) -> list[str]:
    """What one would try now."""
    verb = {"translation": "translate", "language_modeling": "generate"}[config["task"]["name"]]
    line = probes[0].partition("\n")[0] if probes else ""
    return [
        f"attention-zoo {verb} ckpt_path={checkpoint} {shlex.quote(line)}",
        f"attention-zoo attend ckpt_path={checkpoint} {shlex.quote(line)}",
        f"attention-zoo evaluate ckpt_path={checkpoint} split=valid",
        "attention-zoo train -m attention=multi_head,linear position=sinusoidal,rotary",
    ]
