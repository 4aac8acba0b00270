"""The jobs of a sweep, with small scripts in place of trainings."""

import errno
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from attention_zoo.errors import UserError
from attention_zoo.tasks.exit_codes import FAILED, REFUSED
from attention_zoo.tasks.interruption import Interrupted
from attention_zoo.tasks.run_folder import JobRecord, RunFolder
from attention_zoo.tasks.sweeps.jobs import Job
from attention_zoo.tasks.sweeps.scheduling import DevicePool, outcome_table, run_jobs
from attention_zoo.tasks.views.tables import print_table

# The program, whose training does what the option `do` says, in the folder of the run.
SCRIPT = """
import json, os, pathlib, signal, sys, time
from attention_zoo.errors import TrainingDiverged, Unsupported, UserError
from attention_zoo.tasks.commands import cli
from attention_zoo.tasks.interruption import Interrupted

def train(verb, arguments):
    options = dict(argument.split("=", 1) for argument in arguments)
    run = pathlib.Path(options["hydra.run.dir"].strip("'"))
    (run / "seen.json").write_text(json.dumps(options | {
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "began": time.monotonic()}))
    print("here I am", flush=True)
    match options["do"]:
        case "train":
            time.sleep(float(options.get("seconds", 0)))
            (run / "results.json").write_text(json.dumps({"val/loss": 1.5}))
        case "refuse":
            raise Unsupported("linear cannot. Choices: none.")
        case "diverge":
            (run / "results.json").write_text(json.dumps(
                {"val/loss": None, "not_finite": {"val/loss": "nan"}}))
            raise TrainingDiverged("val/loss is nan. Try less.")
        case "fail":
            while "after" in options and not pathlib.Path(options["after"]).exists():
                time.sleep(0.02)
            raise UserError("no such file")
        case "crash":
            raise KeyError("lr")
        case "exit":
            sys.exit(5)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "save":
            try:
                (run / "ready").touch()
                time.sleep(60)
            except Interrupted:
                (run / "saved").touch()
                raise
        case "stay":
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            (run / "ready").touch()
            time.sleep(60)
    (run / "ended").write_text(str(time.monotonic()))

cli.run_composed = train
cli.main()
"""
COMMAND = [sys.executable, "-c", SCRIPT, "train"]
UNRECORDED = "print('the end')"


@pytest.fixture(autouse=True)
def sigint_interrupts() -> Iterator[None]:
    """Shells start background programs with SIGINT ignored, which their jobs would inherit."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def job(folder: Path, number: int, *overrides: str, **options: object) -> Job:
    run, record = RunFolder(folder / str(number)), JobRecord(overrides)
    return Job(number, overrides, " ".join(overrides), run, record, **options)  # type: ignore[arg-type]


def launch(jobs: list[Job], *, slots: int = 2, fail_fast: bool = False, pool=None) -> str:
    """Run jobs; return what was printed."""
    out = io.StringIO()
    run_jobs(
        iter([one for one in jobs if not one.record.is_final]),
        command=COMMAND,
        environment=os.environ,
        pool=pool or DevicePool(slots),
        fail_fast=fail_fast,
        console=Console(file=out, width=200),
    )
    return out.getvalue()


def seen(one: Job) -> dict[str, str]:
    return json.loads((one.folder.path / "seen.json").read_text())


def test_every_way_to_end_is_recorded_with_its_reason(tmp_path):
    ways = ["train", "refuse", "diverge", "fail", "die", "crash", "exit"]
    jobs = [job(tmp_path, number, f"do={way}") for number, way in enumerate(ways)]
    printed = launch(jobs)
    assert [one.record.outcome for one in jobs] == [
        *("trained", "refused", "diverged", "failed", "killed", "failed", "failed")
    ]
    assert [one.record.code for one in jobs] == [0, REFUSED, FAILED, FAILED, -9, 1, 5]
    assert [str(one.record) for one in jobs] == [
        "trained",
        "refused: linear cannot",
        "diverged: val/loss is nan",
        f"failed ({FAILED}): no such file",
        "killed: signal 9 (SIGKILL)",
        "failed (1): KeyError: 'lr'",
        "failed (5): its process recorded no reason",
    ]
    assert jobs[1].record.reason == "linear cannot. Choices: none."
    assert [one.folder.read_job() for one in jobs] == [one.record for one in jobs]
    for one in jobs[2:]:
        assert f"log: {one.folder.log_file}" in printed
    assert "    error: no such file" in printed
    assert "here I am" in jobs[0].folder.log_file.read_text()
    out = io.StringIO()
    print_table(Console(file=out, width=120), outcome_table(jobs))
    assert "1.500" in out.getvalue() and "SIGKILL" in out.getvalue()


def test_only_the_first_rank_records(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    one = job(tmp_path, 0, "do=fail")
    launch([one])
    assert str(one.record) == f"failed ({FAILED}): its process recorded no reason"


@pytest.mark.parametrize("slots", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_as_many_run_at_a_time_as_there_are_slots(tmp_path, slots):
    jobs = [job(tmp_path, number, "do=train", "seconds=0.4") for number in range(3)]
    launch(jobs, slots=slots)
    began = sorted(float(seen(one)["began"]) for one in jobs)
    ended = sorted(float((one.folder.path / "ended").read_text()) for one in jobs)
    assert (began[1] < ended[0]) is (slots == 2)
    assert began[2] > ended[0]


def test_places_on_the_cpu_share_its_threads(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    for slots, threads in ((1, None), (3, "4"), (50, "1")):
        one = job(tmp_path, slots, "do=train")
        launch([one], slots=slots)
        assert seen(one)["threads"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    one = job(tmp_path, 0, "do=train")
    launch([one], slots=3)
    assert seen(one)["threads"] == "7"


def test_jobs_get_gpus_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    # The third waits for GPUs: there are some, though others have them.
    wanted = [("gpu", 1), ("cuda", 2), ("auto", "auto"), ("gpu", 8)]
    jobs = [
        job(tmp_path, number, "do=train", "seconds=0.3", accelerator=kind, devices=count)
        for number, (kind, count) in enumerate(wanted)
    ]
    launch(jobs, slots=1)
    given = [seen(one)["gpus"].split(",") for one in jobs]
    assert given[:2] == [["4"], ["5", "6"]]
    assert sorted(given[2]) == sorted(given[3]) == ["4", "5", "6"]
    began = [float(seen(one)["began"]) for one in jobs]
    ended = [float((one.folder.path / "ended").read_text()) for one in jobs]
    assert began[1] < ended[0] and began[2] > max(ended[:2]) and began[3] > ended[2]


def test_a_second_launch_runs_what_has_no_result(tmp_path):
    ways = ["train", "refuse", "diverge", "fail", "die"]
    launch([job(tmp_path, number, f"do={way}") for number, way in enumerate(ways)])
    checkpoint = tmp_path / "4" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    before = {n: seen(job(tmp_path, n))["began"] for n in range(5)}
    jobs = [job(tmp_path, number, "do=train") for number in range(5)]
    for one in jobs:
        one.restore()
    assert [one.record.is_final for one in jobs] == [True, True, True, False, False]
    launch(jobs)
    again = [n for n in range(5) if seen(jobs[n])["began"] != before[n]]
    assert again == [3, 4]
    assert "ckpt_path" not in seen(jobs[3])
    assert seen(jobs[4])["ckpt_path"] == f"'{checkpoint}'"
    assert [one.record.outcome for one in jobs[1:]] == ["refused", "diverged", "trained", "trained"]


def test_a_record_without_a_config_cannot_be_compared(tmp_path):
    one = job(tmp_path, 0, "do=train")
    one.record.config_hash = "ab"
    one.folder.path.mkdir()
    one.folder.job_file.write_text('{"outcome": "trained", "config": "cd"}')
    with pytest.raises(UserError, match=r"/0 does not record its config, .* version 0\.1"):
        one.restore()


def test_the_first_failure_can_end_all(tmp_path):
    saving = job(tmp_path, 0, "do=save")
    failing = job(tmp_path, 1, "do=fail", f"after={saving.folder.path / 'ready'}")
    jobs = [saving, failing, job(tmp_path, 2, "do=train")]
    launch(jobs, fail_fast=True)
    assert (jobs[0].folder.path / "saved").exists()
    assert jobs[1].record.outcome == "failed" and jobs[2].record.outcome == "waiting"
    refused = [job(tmp_path, 3, "do=refuse"), job(tmp_path, 4, "do=train")]
    launch(refused, fail_fast=True, slots=1)
    assert refused[1].record.outcome == "trained"


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupt_ends_all_jobs(tmp_path, monkeypatch, number):
    """Gently first; what does not listen is killed."""
    monkeypatch.setattr("attention_zoo.tasks.sweeps.scheduling.GRACE_SECONDS", (1.0, 1.0))
    jobs = [job(tmp_path, 0, "do=save"), job(tmp_path, 1, "do=stay")]

    def interrupt() -> None:
        while not all((one.folder.path / "ready").exists() for one in jobs):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match=number.name):
        launch(jobs)
    assert (jobs[0].folder.path / "saved").exists()
    assert [one.process.poll() for one in jobs] == [130, -9]
    assert [str(one.record) for one in jobs] == [
        "failed (130): interrupted (SIGINT)",
        "killed: signal 9 (SIGKILL)",
    ]
    assert json.loads((jobs[0].folder.path / "job.json").read_text())["outcome"] == "failed"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_costs_record_and_log_of_a_job(tmp_path, monkeypatch, caplog):
    """The job prints more than a pipe holds, so that it would stop if nobody read its output."""
    one = job(tmp_path, 0, "do=train")
    one.folder.path.mkdir()
    one.folder.log_file.symlink_to("/dev/full")

    def write_job(folder, record):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunFolder, "write_job", write_job)
    talkative = "print('a line' * 1000, flush=True)\n" * 20
    monkeypatch.setattr(
        sys.modules[__name__], "COMMAND", [sys.executable, "-c", talkative + UNRECORDED]
    )
    launch([one])
    assert (one.record.outcome, one.record.code, one.record.reason) == ("trained", 0, "")
    assert one.last_lines[-1] == "the end"
    said = [x for x in caplog.messages if os.strerror(errno.ENOSPC) in x]
    assert [sum(name in x for x in said) for name in ("job.json", "job.log")] == [2, 1]
