"""`attention-zoo evaluate ckpt_path=FILE split=test`: score a checkpoint, also at other lengths."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from rich.console import Console

from attention_zoo.errors import UserError
from attention_zoo.tasks.analysis.length_report import PREFIX
from attention_zoo.tasks.analysis.lengths import (
    AtLengths,
    check_lengths,
    report_lengths,
    score_lengths,
    trained_at,
)
from attention_zoo.tasks.commands.warning_filters import quiet
from attention_zoo.tasks.configuration.build import instantiate, parameter_counts
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.data.base import PreparedData
from attention_zoo.tasks.data.tokenizers import restore_tokenizer
from attention_zoo.tasks.training.callbacks.progress import Progress
from attention_zoo.tasks.training.checkpoints import required
from attention_zoo.tasks.training.loggers.loggers import (
    create_loggers,
    finish,
    flat_config,
    log_summary,
)
from attention_zoo.tasks.training.results import (
    collect_surroundings,
    named,
    print_metrics,
    print_paths,
    relative_to_cwd,
    write_outputs,
    write_results,
)
from attention_zoo.tasks.training.task import Task, load_task, logged


def run(config: dict[str, Any], call: Invocation) -> None:
    """Score the checkpoint's weights on a split of its data, or of data chosen now."""
    checkpoint = required(call.checkpoint, call.verb)
    if config["split"] not in PREFIX:
        raise UserError(f"split must be valid or test, got {config['split']!r}.")
    check_lengths(config)
    quiet()
    seed_everything(config["seed"], workers=True, verbose=False)
    task = load_task(checkpoint, config)
    task.writes_at_validation = True
    state = checkpoint["attention_zoo"]["tokenizer"]
    data = instantiate(config["data"], tokenizer=partial(restore_tokenizer, state=state))
    data.prepare_data()
    data.setup()
    tests = None
    if config["lengths"]:
        tests = AtLengths(
            config,
            data,
            split=config["split"],
            limit=task.model.max_length,
            trained_at=trained_at(checkpoint["attention_zoo"]["config"]["data"]),
        )
    elif task.model.max_length is not None:
        data.check_max_length(task.model.max_length)
    folder = None if config["output"] is None else made(Path(config["output"]))
    loggers = create_loggers(config, job_type=call.verb)
    exit_code = 1
    try:
        score(config, call, task, data, tests, folder, loggers)
        exit_code = 0
    finally:
        finish(loggers, exit_code)


def made(folder: Path) -> Path:
    """The folder, which may be new. Raises UserError where it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made ({error.strerror or error}); name another: output=FOLDER."
        ) from error
    return folder


def score(
    config: dict[str, Any],
    call: Invocation,
    task: Task,
    data: PreparedData,
    tests: AtLengths | None,
    folder: Path | None,
    loggers: list[Logger],
) -> None:
    """Score, print, and write down what came of it, where there is a folder."""
    console = Console()
    counts = parameter_counts(task.model)
    for logger in loggers:
        logger.log_hyperparams(flat_config(named(config)) | counts)
    trainer: Trainer = instantiate(
        config["trainer"],
        logger=loggers or False,
        callbacks=[Progress()],
        enable_checkpointing=False,
    )
    started = time.perf_counter()
    told: dict[str, Any] = {}
    if tests is not None:
        told["lengths"] = score_lengths(trainer, task, tests)
    else:
        of_split = trainer.test if config["split"] == "test" else trainer.validate
        of_split(task, datamodule=data, verbose=False)
    if not trainer.is_global_zero:
        return
    metrics = logged(trainer, f"{PREFIX[config['split']]}/")
    results = {
        "checkpoint": str(config["ckpt_path"]),
        "overrides": call.overrides,
        "split": config["split"],
        "parameters": counts["parameters"],
        "seconds": round(time.perf_counter() - started, 3),
        "seed": config["seed"],
        "data_hash": data.fingerprint,
        "precision": config["trainer"]["precision"],
        **collect_surroundings(),
        **task.manifest(),
        **told,
    }
    log_summary(loggers, metrics)
    paths = {}
    if folder is not None:
        paths["results"] = relative_to_cwd(folder) / "results.json"
        write_results(paths["results"], metrics, results)
        if task.outputs:
            paths["outputs"] = relative_to_cwd(folder) / f"{config['split']}_outputs.jsonl"
            write_outputs(paths["outputs"], getattr(data, config["split"]), task.outputs)
    if tests is None:
        print_metrics(console, metrics)
    else:
        assert folder is not None  # `resolve_output_dir` has named one
        paths |= report_lengths(console, metrics | results, folder, loggers, trainer.global_step)
    if paths:
        print_paths(console, paths)
