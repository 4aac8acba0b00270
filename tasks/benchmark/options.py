"""Check the options of a benchmark, before models are built."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from attention_zoo.errors import UserError, check_positive
from attention_zoo.tasks.run_folder import RunFolder, refuse_unwritable

TYPES: dict[str, Any] = {
    "lengths": list[int],
    "rounds": int,
    "batch_size": int,
    "decode_tokens": int,
    "decode_batch_sizes": list[int],
    "max_linear_exponent": float | None,
    "output": str | None,
    "hydra.sweep.dir": str,
}


def check_benchmark_options(config: DictConfig) -> None:
    """Refuse values of the wrong type or out of range, and files that cannot be written."""
    # Imported here, as signatures need torch.
    from attention_zoo.tasks.configuration.option_checks import check_value

    options = {name: OmegaConf.select(config, name) for name in TYPES}
    for name, value in options.items():
        if OmegaConf.is_config(value):
            options[name] = value = OmegaConf.to_container(value)
        check_value(value, TYPES[name], name)
        if value == "":
            raise UserError(f"{name} must not be empty.")
    check_positive(**{x: options[x] for x in ("rounds", "batch_size", "decode_tokens")})
    check_numbers("lengths", options["lengths"], 1)
    if not options["lengths"]:
        raise UserError("lengths must have a length, such as lengths=[64,256], got [].")
    check_numbers("decode_batch_sizes", options["decode_batch_sizes"], 1)
    shortest = min(options["lengths"])
    if options["decode_batch_sizes"] and options["decode_tokens"] >= shortest:
        raise UserError(
            "decode_tokens must be below the shortest length, as a prompt precedes them, got "
            f"decode_tokens={options['decode_tokens']} and lengths={options['lengths']}; give "
            "fewer, or decode_batch_sizes=[] to leave decoding out."
        )
    limit = options["max_linear_exponent"]
    if limit is not None:
        if not 0 < limit < math.inf:
            raise UserError(f"max_linear_exponent must be above 0 and finite, got {limit}.")
        if len(options["lengths"]) < 2:
            raise UserError(
                f"max_linear_exponent={limit} needs two lengths or more, got "
                f"lengths={options['lengths']}."
            )


def check_numbers(name: str, numbers: Sequence[int], least: int) -> None:
    """Refuse numbers below the least one, and repeated ones."""
    if any(x < least for x in numbers) or len({*numbers}) < len(numbers):
        raise UserError(
            f"{name} must be different whole numbers of at least {least}, got {[*numbers]}."
        )


def check_files(config: DictConfig) -> None:
    """Refuse a folder that holds results already, and files that cannot be written."""
    folder = RunFolder(config.hydra.sweep.dir)
    if folder.holds_run:
        raise UserError(f"{folder.path} holds results already; choose another hydra.sweep.dir.")
    with refuse_unwritable(folder.path, option="hydra.sweep.dir"):
        folder.path.mkdir(parents=True, exist_ok=True)
    if config.output is not None:
        path = Path(config.output)
        with refuse_unwritable(path, "FILE"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
