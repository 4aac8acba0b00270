"""The command line: `attention-zoo VERB [overrides]`.

What a verb needs is imported when the verb runs, so that help and composition answer at once.
"""

import os
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from attention_zoo.errors import Unsupported, UserError
from attention_zoo.tasks.commands.exit_codes import INTERRUPTED, exit_code
from attention_zoo.tasks.sweeps.job_outcome import record_outcome

# Verb, what it does. Each is a module of `attention_zoo.tasks.commands`.
COMPOSED = {
    "train": "train a model, and score it on the test split",
    "evaluate": "score a checkpoint on a split: ckpt_path=FILE split=test",
    "translate": "translate lines with a checkpoint: ckpt_path=FILE 'A sentence.'",
    "attend": "translate, and write a page of what attends to what: ckpt_path=FILE 'A sentence.'",
    "generate": "go on from a prompt with a checkpoint: ckpt_path=FILE 'Once'",
}
PLAIN = {
    "list": "the zoo as a table",
    "show": "the card of an entry: show rotary",
    "report": "compare runs and sweeps: report DIR…",
    "figures": "the pictures that explain attention: ckpt_path=FILE output=FOLDER",
}


def main() -> None:
    """The program."""
    verb, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if verb in ("--help", "-h"):
        print(usage())
        return
    if verb in ("-sc", "--shell-completion"):
        complete(arguments)
        return
    try:
        with record_outcome():
            run_verb(verb, arguments)
    except UserError as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def run_verb(verb: str, arguments: list[str]) -> None:
    """Run a verb with its arguments."""
    if verb in PLAIN:
        import_module(f"attention_zoo.tasks.commands.{verb}").run(arguments)
    elif verb in COMPOSED:
        run_composed(verb, arguments)
    else:
        from attention_zoo.zoo import unknown_name_message

        raise UserError(unknown_name_message("verb", verb, [*COMPOSED, *PLAIN]))


def report(error: UserError) -> int:
    """Print what is wrong on one line; return the exit code that says which kind it is."""
    refused = isinstance(error, Unsupported)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{'refused' if refused else 'error'}: {error}", file=sys.stderr)
    return exit_code(error)


def usage() -> str:
    verbs = "\n".join(f"  {verb:<10} {does}" for verb, does in (COMPOSED | PLAIN).items())
    return f"""attention-zoo VERB [overrides]

{verbs}

Overrides are Hydra's: attention=linear position=rotary model.dim=256 trainer.max_steps=500
  attention-zoo train --help        the groups and their choices
  attention-zoo train --cfg job     the composed config
  attention-zoo train -m attention=multi_head,linear position=sinusoidal,rotary"""


def complete(arguments: list[str]) -> None:
    """Hydra's shell completion, which calls the program without its verb.

    `attention-zoo -sc install=bash` prints the shell's part of it (likewise zsh, fish); what the
    shell then asks is answered here: verbs, names to show, and behind the other verbs by Hydra.
    """
    if any(x.startswith("query=") for x in arguments):
        program, *words = os.environ["COMP_LINE"].split(" ")
        if len(words) < 2:
            print(" ".join(verb for verb in (*COMPOSED, *PLAIN) if verb.startswith("".join(words))))
            return
        if words[0] == "show":
            # The files are named as the entries are, and reading them takes no torch.
            groups = (files("attention_zoo.conf") / group for group in ("attention", "position"))
            print(" ".join(sorted(Path(x.name).stem for group in groups for x in group.iterdir())))
        if words[0] in COMPOSED:
            os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
            run_composed(words[0], ["-sc", *arguments])
        return
    run_composed("train", ["-sc", *arguments])


def run_composed(verb: str, arguments: list[str]) -> None:
    """Run a verb whose arguments are Hydra's."""
    import hydra
    from omegaconf import DictConfig, OmegaConf

    from attention_zoo.tasks.configuration.composition import (
        explained,
        group_choices,
        parse_command,
        resolve_output_dir,
        source_flags,
    )
    from attention_zoo.tasks.sweeps.launcher import (
        is_launched_by_other,
        job_command,
        run_in_subprocess,
    )

    given = sys.argv
    call = parse_command(verb, arguments)
    # Hydra reads sys.argv. Lightning starts its other processes with it, and they need the verb.
    sys.argv = [given[0], *call.overrides]

    command = job_command(verb, source_flags(call.overrides))
    shown_in_full = "HYDRA_FULL_ERROR" in os.environ
    failures: list[Exception] = []

    @hydra.main(
        config_path="pkg://attention_zoo.conf", config_name=call.config_name, version_base="1.3"
    )
    def job(config: DictConfig) -> Any:
        sys.argv = given
        try:
            if verb == "train" and is_launched_by_other():
                environment = dict(os.environ)
                if not shown_in_full:
                    del environment["HYDRA_FULL_ERROR"]  # It is ours, see below.
                return run_in_subprocess(config, command=command, environment=environment)

            from attention_zoo.tasks.configuration.build import resolve_defaults

            trained = call.checkpoint and call.checkpoint["attention_zoo"]["config"]
            settled = resolve_defaults(config, trained)
            resolve_output_dir(config)
            plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            plain["choices"] = group_choices() | settled
            return import_module(f"attention_zoo.tasks.commands.{verb}").run(plain, call)
        except Exception as error:
            if is_launched_by_other():
                raise  # Perhaps in another process; Hydra says which job it was.
            failures.append(error)  # Hydra would add a line of its own to what is printed.

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Let Hydra raise; `explained` says it on one line.
    try:
        job()
        if failures:
            raise failures[0]
    except Exception as error:
        told = error if shown_in_full else explained(error, call)
        if told is error:
            raise
        raise told from None
