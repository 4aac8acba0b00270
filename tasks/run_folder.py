"""Name, read and write the files of a run, without torch or Lightning."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from attention_zoo.errors import BadInput, UserError

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
RESULTS = "results.json"
JOB_RECORD = "job.json"
JOB_LOG = "job.log"
PLAN = "plan.json"  # of a comparison
CHECKPOINTS = "checkpoints"
BEST_CHECKPOINT = "best.ckpt"
LAST_CHECKPOINT = "last.ckpt"
PREVIOUS_CHECKPOINT = "previous.ckpt"
AVERAGED_CHECKPOINT = "averaged.ckpt"

Outcome = Literal["waiting", "trained", "refused", "diverged", "failed", "killed", "not run"]


@dataclass
class JobRecord:
    """What a sweep records of a job, as `job.json`."""

    overrides: Sequence[str] = ()  # those of the user
    config_hash: str | None = None  # None where the config cannot be composed
    outcome: Outcome = "waiting"
    code: int | None = None  # exit code of its process
    reason: str = ""  # why it was not trained
    seconds: float | None = None  # how long its process ran

    @property
    def is_final(self) -> bool:
        """Return whether the job would end the same if it ran again."""
        return self.outcome in ("trained", "refused", "diverged")

    @property
    def has_failed(self) -> bool:
        """Return whether the job ended without a result, and not by a refusal."""
        return self.outcome in ("failed", "killed", "diverged")

    def __str__(self) -> str:
        code = f" ({self.code})" if self.outcome == "failed" else ""
        return f"{self.outcome}{code}" + (f": {first_sentence(self.reason)}" if self.reason else "")


class RunFolder:
    """The folder of a run, or of an evaluation, which has some of the same files.

    `config.yaml` is the resolved config, `results.json` the metrics and the manifest,
    `test_outputs.jsonl` what the model wrote for the test split. A job of a sweep has `job.json`,
    its record, and `job.log`, all that its process printed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / CONFIG
        self.results_file = self.path / RESULTS
        self.job_file = self.path / JOB_RECORD
        self.log_file = self.path / JOB_LOG
        self.figures = self.path / "figures"
        self.evaluations = self.path / "evaluations"
        self.checkpoints = self.path / CHECKPOINTS
        self.last_checkpoint = self.checkpoints / LAST_CHECKPOINT
        self.wandb_id_file = self.path / "wandb" / "id.txt"

    @classmethod
    def of_checkpoint(cls, checkpoint: str | Path) -> RunFolder:
        """Return the folder of the run that wrote a checkpoint."""
        folder = Path(checkpoint).parent
        return cls(folder.parent if folder.name == CHECKPOINTS else folder)

    @property
    def holds_run(self) -> bool:
        """Return whether a training has left its state or its results here."""
        return self.last_checkpoint.exists() or self.results_file.exists()

    def outputs_file(self, split: str = "test") -> Path:
        """Return the path of what the model wrote for a split."""
        return self.path / f"{split}_outputs.jsonl"

    def sweep_name(self) -> str | None:
        """Return the name of the sweep that the run, or an evaluation of it, belongs to.

        The runs of a comparison are in folders of its phases.
        """
        for folder in (self.path, *self.path.parents):
            if (folder / JOB_RECORD).exists():
                sweep = folder.absolute().parent
                return (sweep.parent if (sweep.parent / PLAN).exists() else sweep).name
        return None

    def read_config(self) -> dict[str, Any]:
        """Return the resolved config; empty, if there is no file."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        if not self.config_file.exists():
            return {}
        try:
            config: Any = OmegaConf.to_container(OmegaConf.load(self.config_file))
        except (YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
            raise unreadable(self.config_file, "a config in YAML", error) from None
        return check_mapping(self.config_file, config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved config."""
        from omegaconf import OmegaConf

        OmegaConf.save(config, self.config_file)

    def read_results(self) -> dict[str, Any]:
        """Return the metrics and the manifest; empty, if there is no file."""
        return read_json(self.results_file)

    def write_results(self, metrics: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Write the metrics, then how they were obtained, as one flat object.

        JSON has no NaN and no infinity: such a metric is null, and `not_finite` holds its value:
        `{"val/loss": "nan"}`.
        """
        if both := {*metrics} & {*manifest, "not_finite"}:
            raise ValueError(f"metrics and manifest must not share names, got {sorted(both)}.")
        numbers = {name: to_number(value) for name, value in metrics.items()}
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        results = {**finite, **manifest}
        if not_finite := {name: str(x) for name, x in numbers.items() if finite[name] is None}:
            results["not_finite"] = not_finite
        entries = [f"  {to_json(name)}: {to_json(value)}" for name, value in results.items()]
        replace_text(self.results_file, "{\n" + ",\n".join(entries) + "\n}\n")

    def read_outputs(self) -> list[dict[str, str]] | None:
        """Return what the model wrote for the test split; None, if there is no file."""
        path = self.outputs_file()
        if not path.exists():
            return None
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
            return [check_mapping(path, json.loads(x)) for x in lines if x]
        except (ValueError, OSError) as error:
            raise unreadable(path, "lines of JSON", error) from None

    def write_outputs(
        self, split: str, lines: Sequence[tuple[str, str]], outputs: Mapping[int, str]
    ) -> None:
        """Write what a model wrote for some lines of a split, by index: an object a line."""
        objects = [
            {"source": lines[index][0], "reference": lines[index][1], "output": outputs[index]}
            for index in sorted(outputs)
        ]
        replace_text(self.outputs_file(split), "".join(f"{to_json(entry)}\n" for entry in objects))

    def read_job(self) -> JobRecord | None:
        """Return the record of the sweep's job; None, if there is no file."""
        entries = read_json(self.job_file)
        names = {field.name for field in fields(JobRecord)}
        record = JobRecord(**{k: x for k, x in entries.items() if k in names}) if entries else None
        if record and not (record.outcome in get_args(Outcome) and are_words(record.overrides)):
            raise unreadable(self.job_file, "the record of a job", "of another form")
        return record

    def write_job(self, record: JobRecord) -> None:
        """Write the record of the sweep's job."""
        entries = json.dumps(asdict(record), indent=2, ensure_ascii=False)
        replace_text(self.job_file, f"{entries}\n")


@contextmanager
def refuse_unwritable(path: Path, kind: str = "FOLDER", option: str = "output") -> Iterator[None]:
    """Raise a `UserError` that asks for another `option` if the path cannot be written to.

    A file in which a part is to be replaced has to be text.
    """
    try:
        yield
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; name another: {option}={kind}.") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be written to ({error.strerror or error}); name another: "
            f"{option}={kind}."
        ) from error


@contextmanager
def going_on_without(path: Path) -> Iterator[None]:
    """Warn that a file cannot be written, such as on a full disk, and go on."""
    try:
        yield
    except OSError as error:
        log.warning("%s was not written: %s. The run goes on.", path, error.strerror or error)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; empty, if there is no file."""
    if not path.exists():
        return {}
    try:
        return check_mapping(path, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise unreadable(path, "JSON", error) from None


def check_mapping(path: Path, content: Any) -> dict[str, Any]:
    """Return what a file holds, if that has names; raise BadInput otherwise."""
    if not isinstance(content, dict):
        raise unreadable(path, "an object with names", f"it holds a {type(content).__name__}")
    return content


def are_words(x: object) -> bool:
    """Return whether x is a list, or a tuple, of words."""
    return isinstance(x, list | tuple) and all(isinstance(word, str) for word in x)


def unreadable(path: Path, kind: str, reason: object) -> BadInput:
    """Return the refusal of a file of a run that is not what the program has written there."""
    if isinstance(reason, BadInput):
        return reason
    words = " ".join(str(reason).split())
    return BadInput(f"{path} is not {kind} ({words}); remove it, or run that job again.")


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step, so that a reader sees the new text or the old, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def to_json(value: Any) -> str:
    """Return a value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def to_number(value: Any) -> float:
    """Return the number in a zero-dimensional tensor, an array or a number."""
    return value.item() if hasattr(value, "item") else value


def relative_to_cwd(path: Path) -> Path:
    """Return the path relative to the working directory, if it lies there: shorter to copy."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def first_sentence(reason: str) -> str:
    """Return a reason without the sentences that follow, such as a list of legal choices."""
    return reason.partition(". ")[0]
