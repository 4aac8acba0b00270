"""A SLURM of one node, with all that it writes in a folder."""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")


class Slurm:
    """Daemons that run until `stop`.

    Raises:
        RuntimeError: a program is missing, or one of them does not come up; the reason is in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen] = []
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        # Daemons are often out of the way of users.
        self.path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/usr/local/sbin"
        missing = [name for name in (*DAEMONS, "sbatch", "srun") if not self.find(name)]
        if missing:
            raise RuntimeError(f"{', '.join(missing)} missing; apt-get install slurm-wlm munge")
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def find(self, name: str) -> str | None:
        return shutil.which(name, path=self.path)

    def start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        (self.folder / "slurm.conf").write_text(self.config())
        places = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid"}
        places |= {"log-file": "munge.log", "seed-file": "munge.seed"}
        options = [f"--{name}={self.folder / place}" for name, place in places.items()]
        self.run("munged", "--foreground", "--force", *options)
        self.wait(lambda: (self.folder / "munge.socket").exists())
        self.run("slurmctld", "-D")
        self.run("slurmd", "-D", "-N", "localhost")
        self.wait(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T"))

    def config(self) -> str:
        user = getpass.getuser()
        ports = []
        with socket.socket() as one, socket.socket() as other:
            for each in (one, other):
                each.bind(("127.0.0.1", 0))
                ports.append(each.getsockname()[1])
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": f"{socket.gethostname().partition('.')[0]}(127.0.0.1)",
            "SlurmUser": user,
            "SlurmdUser": user,
            "SlurmctldPort": ports[0],
            "SlurmdPort": ports[1],
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            "AuthInfo": f"socket={self.folder / 'munge.socket'}",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "slurmd.pid",
            "SlurmctldLogFile": self.folder / "slurmctld.log",
            "SlurmdLogFile": self.folder / "slurmd.log",
            # No cgroups: a container may have no right to them.
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "MpiDefault": "none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "SlurmdParameters": "config_overrides",
            "ReturnToService": 2,
            "MinJobAge": 300,
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1",
        }
        lines = [f"{name}={value}" for name, value in settings.items()]
        # By a name that leads back here: ranks look each other up.
        lines.append("NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN")
        lines.append("PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP")
        return "\n".join([*lines, ""])

    def run(self, name: str, *options: str) -> None:
        program = self.find(name)
        assert program is not None
        with (self.folder / f"{name}.out").open("w") as out:
            environment = os.environ | self.environment
            self.processes.append(
                subprocess.Popen(
                    [program, *options], env=environment, stdout=out, stderr=out, cwd=self.folder
                )
            )

    def ask(self, *command: str) -> str:
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True
        )
        return done.stdout

    def wait(self, ready) -> None:
        until = time.monotonic() + 120
        while not ready():
            dead = [process.args[0] for process in self.processes if process.poll() is not None]
            if dead or time.monotonic() > until:
                raise RuntimeError(f"{dead or 'SLURM'} did not come up: {self.said()}")
            time.sleep(0.1)

    def said(self) -> str:
        """The last that each daemon said."""
        logs = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return " | ".join(text.splitlines()[-1] for log in logs if (text := log.read_text()))

    def stop(self) -> None:
        if len(self.processes) == len(DAEMONS):
            # Or their processes would outlive the daemons.
            self.ask("scancel", "--user", getpass.getuser())
            until = time.monotonic() + 120
            while self.ask("squeue", "--noheader").strip() and time.monotonic() < until:
                time.sleep(0.2)
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
