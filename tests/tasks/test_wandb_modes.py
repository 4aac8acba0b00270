"""Runs of W&B are online where they can be, else offline, and never cost the training."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from attention_zoo.errors import UserError
from attention_zoo.tasks.training.loggers.loggers import finish_loggers
from attention_zoo.tasks.training.loggers.wandb_runs import create_wandb_logger
from tests.wandb_files import runs, summary

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef0123456789abcdef01234567"


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"one of auto, online, offline, disabled, got 'of'"):
        create_wandb_logger(project="zoo", save_dir=tmp_path, mode="of")


class Refusal(BaseHTTPRequestHandler):
    """A W&B server that knows no key."""

    def do_POST(self):
        answer = b'{"errors":[{"message":"permission denied"}]}'
        self.send_response(401)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


class Acceptance(Refusal):
    """A server that makes runs and takes their files, but whose account service is down."""

    received: ClassVar[list[str]] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        self.received.append(body.decode())
        project = {"id": "p", "name": "zoo", "entity": {"id": "e", "name": "me"}}
        id = json.loads(body).get("variables", {}).get("name", "x")
        run = {"id": "r", "name": id, "displayName": id, "config": "{}", "project": project}
        files = {"runID": "r", "uploadHeaders": [], "files": []}
        data = {}
        if b"mutation UpsertBucket" in body:
            data = {"upsertBucket": {"bucket": run, "inserted": True}}
        if b"mutation CreateRunFiles" in body:
            data = {"createRunFiles": files}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


class Silence(Refusal):
    """A network that swallows everything."""

    def do_POST(self):
        time.sleep(60)


@pytest.fixture
def server(request):
    server = ThreadingHTTPServer(("127.0.0.1", 0), request.param)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run_and_time(folder: Path, **environment: str) -> tuple[str, float]:
    """A process that makes the logger and logs; its stderr, and the seconds that W&B cost it."""
    script = """
        import time
        from attention_zoo.tasks.training.loggers.loggers import finish_loggers, log_table
        from attention_zoo.tasks.training.loggers.wandb_runs import create_wandb_logger
        start = time.monotonic()
        logger = create_wandb_logger(project="zoo", save_dir=FOLDER, mode="auto")
        logger.log_metrics({"val/loss": 1.5}, step=1)
        for step in (1, 2):
            log_table([logger], "samples", ["source"], [["one"]], step)
        finish_loggers([logger], 3)
        print(time.time() - (time.monotonic() - start))
    """
    script = textwrap.dedent(script).replace("FOLDER", repr(str(folder)))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=clean | {"HOME": str(folder)} | environment,
        stdin=subprocess.DEVNULL,
    )
    # From the logger's making to the very end of the process: wandb may wait there as well.
    return result.stderr, time.time() - float(result.stdout)


def assert_goes_on_offline(folder: Path, stderr: str, reason: str) -> None:
    [line] = stderr.splitlines()
    assert line.startswith("W&B: offline, ") and reason in line
    [run] = runs(folder)
    assert run.name.startswith("offline-run-")
    assert f"`wandb leet {run}`" in line and f"`wandb sync {run}`" in line
    read = summary(run)
    assert read["summary"]["val/loss"] == 1.5
    assert read["summary"]["samples"]["nrows"] == 1
    assert read["state"] == "failed" and read["exit_code"] == 3


@pytest.mark.slow
def test_without_a_key_the_run_is_offline_and_one_line_says_so(tmp_path):
    stderr, _ = run_and_time(tmp_path)
    assert_goes_on_offline(tmp_path, stderr, "no API key is configured")


@pytest.mark.slow
def test_a_key_in_netrc_is_found_and_a_malformed_one_costs_nothing(tmp_path):
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password short\n")
    netrc.chmod(0o600)
    stderr, _ = run_and_time(tmp_path)
    assert_goes_on_offline(tmp_path, stderr, "API key must have")


@pytest.mark.slow
@pytest.mark.parametrize("server", [Refusal], indirect=True)
def test_a_wrong_key_makes_the_run_go_on_offline(tmp_path, server):
    known = {"WANDB_RUN_ID": "mine1"}  # wandb's service must not hold it against the second start
    stderr, _ = run_and_time(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=server, **known)
    assert_goes_on_offline(tmp_path, stderr, "permission denied")
    assert summary(runs(tmp_path)[0])["run_id"] == "mine1"


@pytest.mark.slow
@pytest.mark.parametrize("server", [Acceptance], indirect=True)
def test_with_a_key_the_run_is_online_and_a_table_that_cannot_be_sent_costs_nothing(
    tmp_path, server
):
    Acceptance.received.clear()
    stderr, _ = run_and_time(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=server)
    [line] = stderr.splitlines()
    assert line.startswith("W&B: no more tables in this run: Failed to verify credentials")
    [run] = runs(tmp_path)
    assert run.name.startswith("run-")
    received = "".join(Acceptance.received)
    assert r"\"val/loss\":1.5" in received
    assert '"complete":true,"exitcode":3' in received


# These two look at the clock: the promise is a time. What a process without a key takes is
# subtracted. They take ten seconds, with the settings of wandb itself more than a hundred: half of
# that is a limit which a busy machine keeps.
PATIENCE = 50


@pytest.mark.slow
@pytest.mark.parametrize("server", [Silence], indirect=True)
def test_a_network_that_swallows_everything_is_given_up_early(tmp_path, server):
    stderr, seconds = run_and_time(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=server)
    assert_goes_on_offline(tmp_path, stderr, "Timed out")
    _, without_key = run_and_time(tmp_path / "without_key")
    assert seconds - without_key < PATIENCE


@pytest.mark.slow
def test_no_network_is_given_up_early(tmp_path):
    address = "http://127.0.0.1:9"  # the discard port: nobody listens
    stderr, seconds = run_and_time(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=address)
    assert_goes_on_offline(tmp_path, stderr, "Timed out")
    _, without_key = run_and_time(tmp_path / "without_key")
    assert seconds - without_key < PATIENCE


def test_the_environment_variable_decides_where_the_mode_is_auto(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    finish_loggers([create_wandb_logger(project="zoo", save_dir=tmp_path)], 0)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.slow
def test_nothing_is_asked_on_a_terminal(tmp_path):
    pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
    leader, follower = pty.openpty()
    code = (
        "from attention_zoo.tasks.training.loggers.loggers import finish_loggers; "
        "from attention_zoo.tasks.training.loggers.wandb_runs import create_wandb_logger; "
        f"logger = create_wandb_logger(project='zoo', save_dir={str(tmp_path)!r}, mode='online'); "
        "finish_loggers([logger], 0)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    streams = {"stdin": follower, "stdout": follower, "stderr": follower}
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=clean | {"HOME": str(tmp_path)}, **streams
    )
    try:
        assert child.wait() == 0
    finally:
        child.kill()
        os.close(follower)
        os.close(leader)
    [run] = runs(tmp_path)
    assert run.name.startswith("offline-run-")


@pytest.mark.slow
def test_an_offline_run_says_that_its_disk_is_full(tmp_path, caplog):
    resource = pytest.importorskip("resource")
    logger = create_wandb_logger(project="zoo", save_dir=tmp_path, mode="offline")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        finish_loggers([logger], 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    [run] = runs(tmp_path)
    [line] = [x for x in caplog.messages if os.strerror(errno.EFBIG) in x]
    assert str(run) in line and "not all is logged there" in line
    assert not (run / ".probe").exists()
