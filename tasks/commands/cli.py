"""The command line: `attention-zoo COMMAND [name=value …]`.

What a command needs is imported when it runs, so that help and composition answer at once.
"""

import atexit
import gc
import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.commands.help import (
    COMMANDS,
    COMPOSED,
    HELP_FLAGS,
    override_help,
    print_composed_help,
    program_help,
)
from attention_zoo.tasks.exit_codes import PIPE_CLOSED, exit_code
from attention_zoo.tasks.interruption import INTERRUPTION, Interrupted, interruptible
from attention_zoo.tasks.sweeps.jobs import record_outcome

# They print something else than a run does.
SHOWING_FLAGS = HELP_FLAGS | {"--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}


def main() -> None:
    """Run the command that the arguments of the program name."""
    command, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    # What imports make stays. To look for garbage among it takes over a second in all: while it
    # grows, and once more at the exit.
    gc.disable()
    atexit.register(gc.freeze)
    try:
        with interruptible(), record_outcome():
            run_command(command, arguments)
            sys.stdout.flush()
    except UserError as error:
        if is_first_process():
            kind = "refused" if isinstance(error, Unsupported) else "error"
            print(f"{kind}: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    except Interrupted as error:
        if is_first_process() and not INTERRUPTION.received:  # which was said already
            print(f"stopped by {error}", file=sys.stderr)
        # Lightning kills the first process when another ends with a code.
        sys.exit(exit_code(error) if is_first_process() else 0)
    except BrokenPipeError:
        # The reader has all that it wants, as `head` does. Python would flush to it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE_CLOSED)
    finally:
        gc.unfreeze()
        gc.enable()


def load(module: str) -> Any:
    """Import the module that does the work; from now on, garbage is collected."""
    loaded = import_module(f"attention_zoo.tasks.{module}")
    gc.freeze()
    gc.enable()
    return loaded


def is_first_process() -> bool:
    """Return whether this process speaks for all processes of the run."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def run_command(command: str, arguments: list[str]) -> None:
    """Run a command, or answer a flag of the program."""
    if command in HELP_FLAGS:
        print(program_help())
    elif command == "--version":
        print(f"attention-zoo {version('attention-zoo')}")
    elif command in ("-sc", "--shell-completion"):
        complete(arguments)
    elif command not in COMMANDS:
        from attention_zoo.zoo import unknown_name_message

        raise UserError(unknown_name_message("command", command, list(COMMANDS)))
    elif command == "compare" and (suite := chosen_suite(arguments)) is not None:
        load("comparison.suite").run_suite(suite, arguments)
    elif command in COMPOSED:
        run_composed(command, arguments)
    else:
        load(f"commands.{command}").run(arguments)


def chosen_suite(arguments: list[str]) -> str | None:
    """Return the suite that the arguments of `compare` name; None if there is none to run."""
    suites = [x.partition("=")[2] for x in arguments if x.lstrip("+").startswith("suite=")]
    if not suites or suites[-1] == "null" or HELP_FLAGS & {*arguments}:
        return None
    return suites[-1].strip("'\"")


def complete(arguments: list[str]) -> None:
    """Answer Hydra's shell completion, which calls the program without its command.

    `attention-zoo -sc install=bash` prints the part of the shell (likewise zsh, fish). The shell
    then asks for commands, names to show, or what Hydra completes.
    """
    from attention_zoo.tasks.configuration.conf_files import list_choices

    if not any(x.startswith("query=") for x in arguments):
        run_composed("train", ["-sc", *arguments])
        return
    if "COMP_LINE" not in os.environ:
        raise UserError("query= is for a shell, which sets COMP_LINE; set it up: -sc install=bash")
    program, *words = os.environ["COMP_LINE"].split(" ")
    if len(words) < 2:
        print(*(name for name in COMMANDS if name.startswith("".join(words))))
    elif words[0] == "show":
        # The files are named as the entries are, and reading them takes no torch.
        stacks = [f"stack={name}" for name in list_choices("stack")]
        print(*sorted([*list_choices("attention"), *list_choices("position")]), *stacks)
    elif words[0] in COMPOSED:
        os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
        run_composed(words[0], ["-sc", *arguments])


def run_composed(command: str, arguments: list[str]) -> None:
    """Run a command whose config Hydra composes."""
    import hydra
    from omegaconf import DictConfig

    from attention_zoo.tasks.configuration.composition import parse_command
    from attention_zoo.tasks.configuration.composition_errors import explain_error
    from attention_zoo.tasks.configuration.override_grammar import print_repeated_options
    from attention_zoo.tasks.configuration.overrides import source_flags
    from attention_zoo.tasks.sweeps import launcher

    program_arguments = sys.argv
    invocation = parse_command(command, arguments)
    asks_for_help = HELP_FLAGS & {*invocation.overrides}
    if not SHOWING_FLAGS & {x.partition("=")[0] for x in arguments}:
        # What these write to stdout is text alone.
        is_text = command in ("translate", "generate")
        print_repeated_options(arguments, sys.stderr if is_text else sys.stdout)
    help_overrides = override_help(command) if asks_for_help else []
    # Hydra reads sys.argv. Lightning starts other processes with it, and they need the command.
    sys.argv = [program_arguments[0], *invocation.overrides, *help_overrides]
    show_traceback = "HYDRA_FULL_ERROR" in os.environ
    failures: list[Exception] = []

    @hydra.main("pkg://attention_zoo.conf", invocation.config_name, version_base="1.3")
    def job(config: DictConfig) -> Any:
        sys.argv = program_arguments
        try:
            if command in ("train", "compare") and launcher.is_launched_by_other():
                environment = dict(os.environ)
                if not show_traceback:
                    del environment["HYDRA_FULL_ERROR"]  # It was set below.
                argv = launcher.job_command("train", source_flags(invocation.overrides))
                return launcher.run_in_subprocess(config, command=argv, environment=environment)
            return run_job(config, invocation)
        except Exception as error:
            if launcher.is_launched_by_other():
                raise  # Perhaps in another process; Hydra says which job it was.
            failures.append(error)  # Hydra would add a line of its own to what is printed.

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors, which are then explained here.
    try:
        print_composed_help(command, job) if asks_for_help else job()
        if failures:
            raise failures[0]
    except Exception as error:
        explained = error if show_traceback else explain_error(error, invocation)
        is_of_hydra = explained is error and not isinstance(error, UserError) and not failures
        if is_of_hydra and isinstance(error, ValueError):
            explained = UserError(" ".join(str(error).split()))  # about its flags
        if explained is error:
            raise
        raise explained from None


def run_job(config: Any, invocation: Any) -> Any:
    """Complete a composed config and run the command with it, in plain containers."""
    from hydra.core.hydra_config import HydraConfig

    from attention_zoo.tasks.configuration.completion import complete_config

    hydra_config = HydraConfig.get()
    if hydra_config.job.chdir:
        raise Unsupported(
            "hydra.job.chdir=true would make names of files relative to the folder of the run, "
            "those in printed commands too; leave it out."
        )
    choices = hydra_config.runtime.choices
    choices = {group: choices[group] for group in choices if not group.startswith("hydra")}
    completed, made_choices = complete_config(config, invocation)
    module = load(f"commands.{invocation.command}")
    return module.run(completed | {"choices": choices | made_choices}, invocation)
