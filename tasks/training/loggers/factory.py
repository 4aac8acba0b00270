"""The loggers of a run, built from the config group `logger`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.build import attention_by_role
from attention_zoo.tasks.run_folder import RunFolder
from attention_zoo.tasks.training.loggers.wandb_runs import create_wandb_logger


def create_loggers(
    config: Mapping[str, Any], *, job_type: str, resumed: Path | None = None
) -> list[Logger]:
    """Build the loggers of the config group `logger`, as `Trainer(logger=…)` takes them.

    Args:
        config: the whole config, in plain containers; its `logger` is None for no logger.
        job_type: the command.
        resumed: the checkpoint of a run that goes on; its run in W&B goes on too.

    Raises:
        UserError: a logger's package is not installed.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    loggers = []
    for name, node in (config["logger"] or {}).items():
        options: dict[str, Any] = {}
        if node["_target_"].endswith(create_wandb_logger.__name__):
            options = wandb_options(config, node, job_type)
            if resumed is not None:
                id_file = RunFolder.of_checkpoint(resumed).wandb_id_file
                options |= {"id": id_file.read_text().strip()} if id_file.exists() else {}
        try:
            loggers.append(instantiate(node, **options, _convert_="all"))
        except InstantiationException as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            if isinstance(error.__cause__, ModuleNotFoundError):
                raise UserError(
                    f"logger={name} needs a package that is not installed; "
                    f"pip install 'attention-zoo[{name}]', or choose logger=csv or logger=none."
                ) from None
            raise
    return loggers


def wandb_options(
    config: Mapping[str, Any], node: Mapping[str, Any], job_type: str
) -> dict[str, Any]:
    """Return the name, group, job type and tags of a run in W&B, where its node leaves them open.

    The name is `translation-linear-rotary-1`: task, attention, position and seed. A role with
    another attention adds it: `translation-linear-cross=additive-rotary-1`. The group is the name
    of the sweep, also for an evaluation of one of its jobs; a single run has none.

    Raises:
        UserError: artifacts of a command that leaves none.
    """
    if node.get("artifacts") and job_type != "train":
        raise UserError(
            f"{job_type} leaves nothing to keep as an artifact, got "
            f"artifacts={list(node['artifacts'])}; ask for them in the training."
        )
    task, position = config["task"]["name"], config["position"]["name"]
    shared = config["attention"]["name"]
    by_role = {role: chosen["name"] for role, chosen in attention_by_role(config).items()}
    others = {role: name for role, name in by_role.items() if name != shared}
    attention = [shared] if len(others) < len(by_role) else []
    attention += [f"{role.removesuffix('_attention')}={name}" for role, name in others.items()]
    tags = [task, config["choices"]["data"], *by_role.values(), position, *node.get("tags", [])]
    return {
        "name": node.get("name") or "-".join([task, *attention, position, str(config["seed"])]),
        "group": node.get("group") or RunFolder(config["paths"]["run"]).sweep_name(),
        "job_type": node.get("job_type") or job_type,
        "tags": list(dict.fromkeys(tags)),
    }
