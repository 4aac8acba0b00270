"""Every run is written down as asked, read back here, and never costs the training."""

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import lightning
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from lightning.pytorch.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import nn

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.resolved_config import flat_hyperparameters
from attention_zoo.tasks.training.loggers import loggers as module
from attention_zoo.tasks.training.loggers.loggers import (
    create_loggers,
    finish_loggers,
    log_artifact,
    log_image,
    log_summary,
    log_table,
    summary_metrics,
)
from attention_zoo.tasks.training.loggers.wandb_runs import (
    RunLogger,
    create_wandb_logger,
    wandb_options,
)
from tests.wandb_files import history, inspect, runs, summary

ROOT = Path(__file__).parents[2]


def figure() -> io.BytesIO:
    drawing = Figure(figsize=(2, 1), dpi=50)
    drawing.add_subplot().imshow([[0, 1], [1, 0]])
    file = io.BytesIO()
    drawing.savefig(file)
    return file


class Line(lightning.LightningModule):
    """The smallest task that trains."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, index):
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(loggers, folder):
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=2,
        log_every_n_steps=1,
        logger=loggers,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Line(), torch.utils.data.DataLoader(torch.ones(2, 1)))
    return trainer


quiet_fit = pytest.mark.filterwarnings(
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated",
)


@quiet_fit
def test_offline_run_holds_config_history_summary_image_and_table(tmp_path):
    logger = create_wandb_logger(
        project="zoo", save_dir=tmp_path, name="first", group="g", tags=["linear"], mode="offline"
    )
    config = {"attention": {"name": "linear", "heads": 2}, "position": {"name": "rotary"}}
    logger.log_hyperparams(flat_hyperparameters(config) | {"parameters": 2})
    trainer = fit([logger], tmp_path)
    log_image(trainer.loggers, "attention/cross", figure(), trainer.global_step)
    log_table(trainer.loggers, "samples", ["source", "output"], [["uma", "one"]], step=2)
    log_summary(trainer.loggers, {"test/bleu": 33.25})
    finish_loggers(trainer.loggers, 0)

    [run] = runs(tmp_path)
    read = summary(run)
    assert read["state"] == "finished"
    assert (read["name"], read["project"], read["tags"]) == ("first", "zoo", ["linear"])
    assert read["config"] == {
        "attention": "linear",
        "attention/heads": 2,
        "position": "rotary",
        "parameters": 2,
    }
    assert read["summary"]["test/bleu"] == 33.25
    losses = [item for item in history(run) if "train/loss" in item]
    assert [item["trainer/global_step"] for item in losses] == [0, 1]
    assert losses[0]["train/loss"] > losses[1]["train/loss"]
    [image] = read["summary"]["attention/cross"]["filenames"]
    assert (run / "files" / image).read_bytes().startswith(b"\x89PNG")
    table = json.loads((run / "files" / read["summary"]["samples"]["path"]).read_text())
    assert table == {"columns": ["source", "output"], "data": [["uma", "one"]]}


@pytest.mark.slow
def test_two_jobs_in_one_process_are_two_runs_and_the_crashed_one_reads_as_failed(tmp_path):
    before = dict(os.environ)
    for job, code in enumerate((1, 0)):
        logger = create_wandb_logger(project="zoo", save_dir=tmp_path / str(job), mode="offline")
        logger.log_metrics({"val/loss": job}, step=5)
        finish_loggers([logger], code)
    changed = {name for name in os.environ if os.environ[name] != before.get(name)}
    assert changed <= {"WANDB_ERROR_REPORTING"}
    first, second = (summary(runs(tmp_path / job)[0]) for job in "01")
    assert (first["state"], first["exit_code"], first["summary"]["val/loss"]) == ("failed", 1, 0)
    assert (second["state"], second["summary"]["val/loss"]) == ("finished", 1)
    assert first["run_id"] != second["run_id"]


def test_a_job_does_not_join_a_run_that_was_left_open(tmp_path):
    left_open = create_wandb_logger(project="zoo", save_dir=tmp_path, mode="offline")
    logger = create_wandb_logger(project="zoo", save_dir=tmp_path, mode="offline")
    assert logger.version != left_open.version
    finish_loggers([left_open, logger], 0)


def test_disabled_takes_everything_and_writes_nothing(tmp_path):
    logger = create_wandb_logger(project="zoo", save_dir=tmp_path, mode="disabled")
    logger.log_hyperparams({"attention": "linear"})
    log_image([logger], "picture", figure(), 0)
    log_table([logger], "samples", ["a"], [["b"]], 0)
    log_summary([logger], {"test/loss": 1.0})
    finish_loggers([logger], 0)
    assert not list(tmp_path.rglob("*"))


def test_other_ranks_start_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(module.rank_zero_only, "rank", 1)
    logger = create_wandb_logger(project="zoo", save_dir=tmp_path, mode="offline")
    logger.log_hyperparams({"attention": "linear"})
    log_summary([logger], {"test/loss": 1.0})
    finish_loggers([logger], 0)
    assert not list(tmp_path.rglob("*"))


def artifact_files(run: Path) -> dict[str, list[str]]:
    """Return the files of each artifact of a run, by its type."""
    records = [json.loads(line) for line in inspect(run).splitlines()]
    artifacts = [record["artifact"] for record in records if record["type"] == "artifact"]
    return {
        artifact["type"]: [entry["local_path"] for entry in artifact["manifest"]["contents"]]
        for artifact in artifacts
    }


@pytest.mark.slow
def test_artifacts_are_those_that_were_asked_for(tmp_path):
    files = {kind: tmp_path / kind for kind in ("config", "checkpoint")}
    for path in files.values():
        path.write_text("something")
    for number, asked in enumerate(([], ["config"], ["config", "checkpoint"])):
        folder = tmp_path / str(number)
        logger = create_wandb_logger(
            project="zoo", save_dir=folder, mode="offline", artifacts=asked
        )
        for kind, path in files.items():
            log_artifact([logger], kind, path)
        finish_loggers([logger], 0)
        [run] = runs(folder)
        types = {"config": "config", "checkpoint": "model"}
        assert artifact_files(run) == {types[kind]: [str(files[kind])] for kind in asked}


def test_an_artifact_that_is_not_there_is_missed_aloud(tmp_path, caplog):
    logger = create_wandb_logger(
        project="zoo", save_dir=tmp_path, mode="offline", artifacts=["checkpoint"]
    )
    log_artifact([logger], "checkpoint", None)
    finish_loggers([logger], 0)
    assert "this run leaves no checkpoint" in caplog.text


def test_a_strange_artifact_is_refused(tmp_path):
    with pytest.raises(UserError, match="of config, checkpoint, got 'model'"):
        create_wandb_logger(project="zoo", save_dir=tmp_path, artifacts=["model"])


@pytest.mark.slow
def test_a_table_waits_for_its_upload_in_the_folder_of_its_run(tmp_path):
    logger = create_wandb_logger(project="zoo", save_dir=tmp_path, mode="offline")
    log_table([logger], "samples", ["a"], [["b"]], 0)
    finish_loggers([logger], 0)
    [run] = runs(tmp_path)
    ((table,),) = artifact_files(run).values()
    assert Path(table).is_relative_to(run) and "b" in Path(table).read_text()
    assert "WANDB_DATA_DIR" not in os.environ


@pytest.mark.slow
def test_all_is_on_disk_when_finish_returns(tmp_path):
    """wandb's own `finish` leaves a header of 7 bytes, and the rest for a moment later."""
    for number in range(5):
        logger = create_wandb_logger(project="zoo", save_dir=tmp_path / str(number), mode="offline")
        log_summary([logger], {"test/loss": 1.0})
        finish_loggers([logger], 0)
        [record] = (tmp_path / str(number)).glob("wandb/offline-run-*/*.wandb")
        assert b"test/loss" in record.read_bytes()


@pytest.mark.slow
def test_a_run_that_is_killed_reads_as_crashed(tmp_path):
    script = """
        import os, signal, time
        from attention_zoo.tasks.training.loggers.wandb_runs import create_wandb_logger
        logger = create_wandb_logger(project="zoo", save_dir=FOLDER, mode="offline")
        logger.log_metrics({"val/loss": 1.5}, step=1)
        time.sleep(3)  # wandb writes every second
        os.kill(os.getpid(), signal.SIGKILL)
    """
    script = textwrap.dedent(script).replace("FOLDER", repr(str(tmp_path)))
    environment = {name: x for name, x in os.environ.items() if not name.startswith("WANDB_")}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment)
    [run] = runs(tmp_path)
    [record] = run.glob("*.wandb")
    # Of a file without an end that was just written to, wandb says that the run goes on.
    long_ago = record.stat().st_mtime - 3600
    os.utime(record, (long_ago, long_ago))
    read = summary(run)
    assert (read["state"], read["exit_code"], read["summary"]["val/loss"]) == ("crashed", None, 1.5)


@pytest.mark.slow
def test_ctrl_c_has_the_exit_code_that_wandb_gives_it(tmp_path):
    logger = create_wandb_logger(project="zoo", save_dir=tmp_path, mode="offline")
    finish_loggers([logger], 143)
    assert summary(runs(tmp_path)[0])["exit_code"] == 255


@pytest.mark.slow
def test_an_id_from_the_environment_is_the_run_s(tmp_path, monkeypatch):
    """As `wandb agent` gives it."""
    monkeypatch.setenv("WANDB_RUN_ID", "agents1")
    logger = create_wandb_logger(project="zoo", save_dir=tmp_path, mode="offline")
    finish_loggers([logger], 0)
    assert summary(runs(tmp_path)[0])["run_id"] == "agents1"


def test_summary_metrics_are_scalars_with_the_best_and_the_last_loss():
    results = {"val/loss": 1.5, "seed": 3, "bleu_signature": "nrefs:1", "versions": {"torch": "2"}}
    results |= {"git_commit": None, "lengths": [1]}
    scalars = {"val/loss": 1.5, "seed": 3, "bleu_signature": "nrefs:1"}
    assert summary_metrics(results, []) == scalars
    losses = {"val/best_loss": 1.5, "val/last_loss": 1.75}
    assert summary_metrics(results, [2.0, 1.5, 1.75]) == scalars | losses


def composed(folder: Path, *overrides: str) -> dict:
    base = {
        "defaults": ["_self_", {"logger": "wandb"}],
        "paths": {"run": str(folder)},
        "choices": {"data": "phrases"},
        "task": {"name": "translation"},
        "model": {"layers": 2},
        "attention": {"name": "linear"},
        "encoder_attention": None,
        "decoder_attention": None,
        "cross_attention": None,
        "position": {"name": "rotary"},
        "seed": 7,
    }
    ConfigStore.instance().store(name="logger_test", node=base)
    with initialize_config_module("attention_zoo.conf", version_base="1.3"):
        config = compose("logger_test", overrides=list(overrides))
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.slow
def test_wandb_by_config(tmp_path):
    config = composed(tmp_path, "logger.wandb.mode=offline")
    [logger] = create_loggers(config, job_type="train")
    finish_loggers([logger], 0)
    read = summary(runs(tmp_path)[0])
    assert read["name"] == "translation-linear-rotary-7"
    assert read["tags"] == ["translation", "phrases", "linear", "rotary"]


def options_of(folder, *overrides, roles=(), job_type="train"):
    config = composed(folder, *overrides) | dict(roles)
    return wandb_options(config, config["logger"]["wandb"], job_type)


@pytest.mark.parametrize(
    "roles, words",
    [
        ({}, ["linear"]),
        ({"cross_attention": "additive"}, ["linear", "cross=additive"]),
        ({"cross_attention": "linear"}, ["linear"]),
        (
            {"encoder_attention": "fourier", "decoder_attention": "delta"},
            ["linear", "encoder=fourier", "decoder=delta"],
        ),
        (
            dict.fromkeys(("encoder_attention", "decoder_attention", "cross_attention"), "gated"),
            ["encoder=gated", "decoder=gated", "cross=gated"],
        ),
    ],
)
def test_a_role_with_an_attention_of_its_own_stands_in_the_name(tmp_path, roles, words):
    options = options_of(tmp_path, roles={role: {"name": name} for role, name in roles.items()})
    assert options["name"] == f"translation-{'-'.join(words)}-rotary-7"
    assert {word.rpartition("=")[2] for word in words} <= set(options["tags"])
    assert len(options["tags"]) == len(set(options["tags"]))


def test_what_the_user_says_of_a_run_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    monkeypatch.setenv("WANDB_PROJECT", "elsewhere")
    options = options_of(
        tmp_path, "logger.wandb.name=mine", "logger.wandb.job_type=try", "logger.wandb.tags=[paper]"
    )
    assert (options["name"], options["group"], options["job_type"]) == ("mine", "theirs", "try")
    assert "paper" in options["tags"] and "linear" in options["tags"]
    assert composed(tmp_path)["logger"]["wandb"]["project"] == "elsewhere"


def test_a_single_run_has_no_group_and_the_verb_s_job_type(tmp_path):
    options = options_of(tmp_path, job_type="evaluate")
    assert (options["group"], options["job_type"]) == (None, "evaluate")


def test_the_group_is_the_sweep_of_the_job_also_for_its_evaluations(tmp_path):
    (tmp_path / "sizes" / "3").mkdir(parents=True)
    (tmp_path / "sizes" / "3" / "job.json").write_text("{}")
    for folder in ("sizes/3", "sizes/3/evaluations/now"):
        assert options_of(tmp_path / folder)["group"] == "sizes"
    assert options_of(tmp_path / "sizes")["group"] is None


def test_an_evaluation_keeps_no_artifacts(tmp_path):
    with pytest.raises(UserError, match=r"evaluate leaves nothing.*\['config'\]"):
        options_of(tmp_path, "logger.wandb.artifacts=[config]", job_type="evaluate")


@pytest.mark.slow
def test_what_is_resumed_is_the_same_run(tmp_path):
    """Also from another folder: that of the checkpoint says which run it was."""
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    config = composed(tmp_path, "logger=wandb", "logger.wandb.mode=offline")
    ids = []
    for folder, resumed in ((tmp_path, None), (tmp_path, checkpoint), (tmp_path / "b", checkpoint)):
        config["logger"]["wandb"]["save_dir"] = str(folder)
        (logger,) = create_loggers(config, job_type="train", resumed=resumed)
        ids.append(logger.experiment.id)
        finish_loggers([logger], 0)
    assert len(set(ids)) == 1
    assert len(runs(tmp_path)) == 2 and len(runs(tmp_path / "b")) == 1
    (logger,) = create_loggers(config, job_type="train")
    assert logger.experiment.id != ids[0]
    finish_loggers([logger], 0)


@quiet_fit
def test_csv_by_config(tmp_path):
    loggers = create_loggers(composed(tmp_path, "logger=csv"), job_type="train")
    assert [type(logger) for logger in loggers] == [CSVLogger]
    loggers[0].log_hyperparams({"attention": "linear"})
    trainer = fit(loggers, tmp_path)
    log_image(trainer.loggers, "picture", figure(), 2)
    log_table(trainer.loggers, "samples", ["a"], [["b"]], 2)
    log_summary(trainer.loggers, {"test/loss": 1.0})
    finish_loggers(trainer.loggers, 0)
    header, *lines = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    assert "train/loss" in header.split(",") and len(lines) == 2
    assert "linear" in (tmp_path / "csv" / "hparams.yaml").read_text()


@quiet_fit
def test_tensorboard_by_config(tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra tensorboard is not installed",
    )
    loggers = create_loggers(composed(tmp_path, "logger=tensorboard"), job_type="train")
    assert [type(logger) for logger in loggers] == [TensorBoardLogger]
    loggers[0].log_hyperparams({"attention": "linear", "data/splits": [1, 2], "group": None})
    trainer = fit(loggers, tmp_path)
    log_image(trainer.loggers, "picture", figure(), 2)
    log_table(trainer.loggers, "samples", ["a", "b"], [["x|y", "two\nlines"]], 2)
    log_summary(trainer.loggers, {"test/loss": 1.0})
    finish_loggers(trainer.loggers, 0)
    read = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in read.Scalars("train/loss")] == [0, 1]
    [image] = read.Images("picture")
    assert (image.step, image.width, image.height) == (2, 100, 50)
    [text] = read.Tensors("samples/text_summary")
    assert b"| x\\|y | two lines |" in text.tensor_proto.string_val[0]


@pytest.mark.slow
def test_a_picture_may_be_a_file(tmp_path):
    (tmp_path / "map.png").write_bytes(figure().getvalue())
    logger = create_wandb_logger(project="zoo", save_dir=tmp_path, mode="offline")
    log_image([logger], "map", tmp_path / "map.png", 0)
    finish_loggers([logger], 0)
    [run] = runs(tmp_path)
    assert summary(run)["summary"]["map"]["count"] == 1


def test_no_logger_by_config(tmp_path):
    config = composed(tmp_path, "logger=none")
    assert config["logger"] is None
    assert create_loggers(config, job_type="train") == []


def test_two_loggers_by_config(tmp_path):
    config = composed(tmp_path, "logger=[wandb,csv]", "logger.wandb.mode=offline")
    loggers = create_loggers(config, job_type="train")
    finish_loggers(loggers, 0)
    assert [type(logger) for logger in loggers] == [RunLogger, CSVLogger]


def test_a_missing_package_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    with pytest.raises(UserError, match=r"pip install 'attention-zoo\[tensorboard\]'"):
        create_loggers(composed(tmp_path, "logger=tensorboard"), job_type="train")


def test_a_wrong_mode_by_config_is_one_line(tmp_path):
    with pytest.raises(UserError, match="one of auto"):
        create_loggers(composed(tmp_path, "logger.wandb.mode=of"), job_type="train")


def test_flat_hyperparameters_name_the_choices():
    config = {
        "seed": 3,
        "attention": {"name": "grouped_query", "kv_heads": 2, "_partial_": True, "_target_": "a.B"},
        "cross_attention": {"name": "additive"},
        "optimizer": {"_target_": "attention_zoo.tasks.training.optimizers.muon", "lr": 0.02},
        "data": {"source": {"_target_": "x.Phrases", "pair": ["en", "pt"]}},
        "logger": {"wandb": {"mode": "auto"}},
        "paths": {"run": "logs"},
        "ckpt_path": None,
    }
    assert flat_hyperparameters(config) == {
        "seed": 3,
        "attention": "grouped_query",
        "attention/kv_heads": 2,
        "attention/cross": "additive",
        "optimizer": "muon",
        "optimizer/lr": 0.02,
        "data/source": "Phrases",
        "data/source/pair": ["en", "pt"],
        "ckpt_path": None,
    }


class RecordingClient:
    """Stands in for a logger's client, which has `log_image`."""

    def __init__(self):
        self.images = []

    def log_image(self, *arguments, **options):
        self.images.append((arguments, options))


@pytest.mark.parametrize("kind", [CometLogger, MLFlowLogger])
def test_pictures_go_to_loggers_of_ones_own_trainer(kind):
    class StandIn(kind):
        experiment, run_id = RecordingClient(), "abc"

        def __init__(self):
            pass  # Its package need not be there.

    log_image([StandIn()], "attention/cross", figure(), 7)
    [(arguments, options)] = StandIn.experiment.images
    picture = arguments[-1]
    assert (picture.size, picture.mode) == ((100, 50), "RGB")
    named = {"key": "attention/cross"} if kind is MLFlowLogger else {"name": "attention/cross"}
    assert options == named | {"step": 7}
    assert arguments[:-1] == (("abc",) if kind is MLFlowLogger else ())
