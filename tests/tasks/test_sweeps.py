"""The jobs of a sweep, with small scripts in place of trainings."""

import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from attention_zoo.tasks.commands.exit_codes import FAILED, REFUSED
from attention_zoo.tasks.sweeps.jobs import LOG, Job, Pool, run_jobs, summary

# Does what its first word says, in the folder of the run.
SCRIPT = f"""
import json, os, pathlib, signal, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:])
run = pathlib.Path(words["hydra.run.dir"].strip("'"))
(run / "seen.json").write_text(json.dumps(words | {{"threads": os.environ.get("OMP_NUM_THREADS"),
    "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "began": time.monotonic()}}))
print("here I am")
match words["do"]:
    case "train":
        time.sleep(float(words.get("seconds", 0)))
        (run / "results.json").write_text(json.dumps({{"val/loss": 1.5}}))
    case "refuse":
        print("refused: linear cannot. Choices: none.", file=sys.stderr)
        sys.exit({REFUSED})
    case "diverge":
        (run / "results.json").write_text(json.dumps(
            {{"val/loss": None, "not_finite": {{"val/loss": "nan"}}}}))
        print("error: training diverged: val/loss is nan. Try less.", file=sys.stderr)
        sys.exit({FAILED})
    case "fail":
        print("error: no such file", file=sys.stderr)
        sys.exit({FAILED})
    case "die":
        os.kill(os.getpid(), signal.SIGKILL)
    case "save":
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            (run / "saved").touch()
            sys.exit(130)
    case "stay":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(60)
(run / "ended").write_text(str(time.monotonic()))
"""
COMMAND = [sys.executable, "-c", SCRIPT]


def job(folder: Path, number: int, *words: str, **options: object) -> Job:
    label = " ".join(words)
    return Job(number, words, words, label, folder / str(number), **options)  # type: ignore[arg-type]


def launch(jobs: list[Job], *, slots: int = 2, fail_fast: bool = False, pool=None) -> str:
    """Run jobs; what was printed."""
    out = io.StringIO()
    run_jobs(
        iter([one for one in jobs if not one.finished]),
        command=COMMAND,
        environment=os.environ,
        pool=pool or Pool(slots),
        fail_fast=fail_fast,
        console=Console(file=out, width=200),
    )
    return out.getvalue()


def seen(one: Job) -> dict[str, str]:
    return json.loads((one.run / "seen.json").read_text())


def test_every_way_to_end_is_told_apart(tmp_path):
    ways = ["train", "refuse", "diverge", "fail", "die"]
    jobs = [job(tmp_path, number, f"do={way}") for number, way in enumerate(ways)]
    told = launch(jobs)
    assert [one.outcome for one in jobs] == ["trained", "refused", "diverged", "failed", "killed"]
    assert [one.code for one in jobs] == [0, REFUSED, FAILED, FAILED, -9]
    assert jobs[1].told == "refused: linear cannot"
    assert jobs[2].told == "diverged: val/loss is nan"
    assert jobs[3].told == f"failed ({FAILED}): no such file"
    assert jobs[4].told == "killed: signal 9 (SIGKILL)"
    for one in jobs[2:]:
        assert f"log: {one.run / LOG}" in told
    assert "    error: no such file" in told
    assert "here I am" in (jobs[0].run / LOG).read_text()
    out = io.StringIO()
    Console(file=out, width=120).print(summary(jobs))
    assert "1.500" in out.getvalue() and "SIGKILL" in out.getvalue()


@pytest.mark.parametrize("slots", [1, 2])
def test_as_many_run_at_a_time_as_there_are_places(tmp_path, slots):
    jobs = [job(tmp_path, number, "do=train", "seconds=0.4") for number in range(3)]
    launch(jobs, slots=slots)
    began = sorted(float(seen(one)["began"]) for one in jobs)
    ended = sorted(float((one.run / "ended").read_text()) for one in jobs)
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
    ended = [float((one.run / "ended").read_text()) for one in jobs]
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
        one.recall()
    assert [one.finished for one in jobs] == [True, True, True, False, False]
    launch(jobs)
    again = [n for n in range(5) if seen(jobs[n])["began"] != before[n]]
    assert again == [3, 4]
    assert "ckpt_path" not in seen(jobs[3])
    assert seen(jobs[4])["ckpt_path"] == f"'{checkpoint}'"
    assert [one.outcome for one in jobs[1:]] == ["refused", "diverged", "trained", "trained"]


def test_the_first_failure_can_end_all(tmp_path):
    jobs = [job(tmp_path, 0, "do=save"), job(tmp_path, 1, "do=fail"), job(tmp_path, 2, "do=train")]
    launch(jobs, fail_fast=True)
    assert (jobs[0].run / "saved").exists()
    assert jobs[1].outcome == "failed" and jobs[2].outcome == "waiting"
    refused = [job(tmp_path, 3, "do=refuse"), job(tmp_path, 4, "do=train")]
    launch(refused, fail_fast=True, slots=1)
    assert refused[1].outcome == "trained"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_jobs(tmp_path, monkeypatch, number):
    """Gently first; what does not listen is killed."""
    monkeypatch.setattr("attention_zoo.tasks.sweeps.jobs.GRACE", (1.0, 1.0))
    jobs = [job(tmp_path, 0, "do=save"), job(tmp_path, 1, "do=stay")]

    def interrupt() -> None:
        while not all((one.run / "seen.json").exists() for one in jobs):
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        launch(jobs)
    assert (jobs[0].run / "saved").exists()
    assert [one.process.poll() for one in jobs if one.process] == [130, -15]
    assert json.loads((jobs[0].run / "job.json").read_text())["outcome"] == "failed"
