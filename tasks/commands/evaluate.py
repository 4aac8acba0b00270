"""`attention-zoo evaluate`: score a checkpoint on a split of its data, also at other lengths."""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from rich.console import Console

from attention_zoo.errors import UserError
from attention_zoo.tasks.analysis import lengths
from attention_zoo.tasks.analysis.length_report import METRIC_PREFIX
from attention_zoo.tasks.commands.warning_filters import silence_libraries
from attention_zoo.tasks.configuration.build import instantiate, parameter_counts
from attention_zoo.tasks.configuration.composition import Invocation
from attention_zoo.tasks.configuration.resolved_config import (
    flat_hyperparameters,
    with_choice_names,
)
from attention_zoo.tasks.configuration.validation import check_seed
from attention_zoo.tasks.data.base import PreparedData
from attention_zoo.tasks.data.tokenizers import restore_tokenizer
from attention_zoo.tasks.run_folder import (
    RunFolder,
    going_on_without,
    refuse_unwritable,
    relative_to_cwd,
)
from attention_zoo.tasks.training.callbacks.progress import Progress
from attention_zoo.tasks.training.loggers.loggers import (
    check_loggers,
    create_loggers,
    finish_loggers,
    log_summary,
)
from attention_zoo.tasks.training.manifest import collect_environment
from attention_zoo.tasks.training.task import Task, load_task, logged_metrics
from attention_zoo.tasks.training.trainer_options import check_trainer
from attention_zoo.tasks.views.console import print_metrics, print_paths


def run(config: dict[str, Any], invocation: Invocation) -> None:
    """Score the checkpoint on a split of its data, or of data that are chosen anew."""
    checkpoint = invocation.require_checkpoint()
    if config["split"] not in METRIC_PREFIX:
        raise UserError(f"split must be valid or test, got {config['split']!r}.")
    lengths.check_lengths(config)
    silence_libraries()
    check_trainer(config)
    limit = "limit_test_batches" if config["split"] == "test" else "limit_val_batches"
    if config["trainer"].get(limit) == 0:
        raise UserError(f"trainer.{limit} must be above 0, got 0: it would score nothing.")
    check_seed(config["seed"])
    check_loggers(config)
    seed_everything(config["seed"], workers=True, verbose=False)
    task = load_task(checkpoint, config)
    task.generates_in_validation = True
    state = checkpoint["attention_zoo"]["tokenizer"]
    data = instantiate(config["data"], tokenizer=partial(restore_tokenizer, state=state))
    data.source.keep_only(config["split"])
    data.prepare_data()
    data.setup()
    for warning in data.report["warnings"]:
        print(f"warning  {warning}", file=sys.stderr)
    length_tests = None
    if config["lengths"]:
        length_tests = lengths.LengthDataModule(
            config,
            data,
            split=config["split"],
            max_length=task.model.max_length,
            training_length=lengths.training_length(checkpoint["attention_zoo"]["config"]["data"]),
        )
    elif task.model.max_length is not None:
        data.check_max_length(task.model.max_length)
    output = None
    if config["output"] is not None:
        output = RunFolder(relative_to_cwd(Path(config["output"])))
        with refuse_unwritable(output.path):
            output.path.mkdir(parents=True, exist_ok=True)
    loggers = create_loggers(config, job_type=invocation.command)
    exit_code = 1
    try:
        score(config, invocation, task, data, length_tests, output, loggers)
        exit_code = 0
    finally:
        finish_loggers(loggers, exit_code)


def score(
    config: dict[str, Any],
    invocation: Invocation,
    task: Task,
    data: PreparedData,
    length_tests: lengths.LengthDataModule | None,
    output: RunFolder | None,
    loggers: list[Logger],
) -> None:
    """Score, print the metrics, and write the results if there is a folder for them."""
    console, split = Console(), config["split"]
    counts = parameter_counts(task.model)
    for logger in loggers:
        logger.log_hyperparams(flat_hyperparameters(with_choice_names(config)) | counts)
    trainer: Trainer = instantiate(
        config["trainer"],
        logger=loggers or False,
        callbacks=[Progress()],
        enable_checkpointing=False,
    )
    started = time.perf_counter()
    length_scores = {}
    if length_tests is not None:
        length_scores = {"lengths": lengths.score_lengths(trainer, task, length_tests)}
    else:
        evaluate = trainer.test if split == "test" else trainer.validate
        evaluate(task, datamodule=data, verbose=False)
    if not trainer.is_global_zero:
        return
    metrics = logged_metrics(trainer, f"{METRIC_PREFIX[split]}/")
    manifest = {
        "checkpoint": str(config["ckpt_path"]),
        "overrides": invocation.overrides,
        "split": split,
        "parameters": counts["parameters"],
        "seconds": round(time.perf_counter() - started, 3),
        "seed": config["seed"],
        "data": data.report,
        "data_hash": data.fingerprint,
        "precision": config["trainer"]["precision"],
        **collect_environment(),
        **task.metric_signatures(),
        **length_scores,
    }
    log_summary(loggers, metrics)
    paths = {}
    if output is not None:
        with going_on_without(output.results_file):
            output.write_results(metrics, manifest)
            paths["results"] = output.results_file
        if task.outputs:
            with going_on_without(output.outputs_file(split)):
                output.write_outputs(split, getattr(data, split), task.outputs)
                paths["outputs"] = output.outputs_file(split)
    if length_tests is None:
        print_metrics(console, metrics)
    else:
        assert output is not None  # `resolve_output_dir` has named one.
        results, step = metrics | manifest, trainer.global_step
        paths |= lengths.report_lengths(console, results, output.path, loggers, step)
    if paths:
        print_paths(console, paths)
