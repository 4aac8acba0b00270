"""Check a comparison as far as it can be without a folder and without a training."""

from collections.abc import Sequence
from typing import Any

from hydra import initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.types import HydraContext, RunMode

from attention_zoo.tasks.configuration.composition import parse_command
from attention_zoo.tasks.configuration.composition_errors import explain_error
from attention_zoo.tasks.configuration.overrides import search_path


def check_comparison(arguments: Sequence[str]) -> None:
    """Raise UserError for what `compare` refuses of these arguments before it trains."""
    invocation = parse_command("compare", arguments)
    overrides = [x for x in invocation.overrides if "=" in x and not x.startswith("-")]
    overrides = [*search_path(invocation.overrides), *overrides]
    setup_globals()
    try:
        with initialize_config_module("attention_zoo.conf", version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            config = loader.load_configuration(
                invocation.config_name, overrides, run_mode=RunMode.MULTIRUN
            )
            sweeper: Any = Plugins.instance().instantiate_sweeper(
                hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
                task_function=lambda _: None,
                config=config,
            )
            sweeper.create_candidates(list(config.hydra.overrides.task))
    except Exception as error:
        explained = explain_error(error, invocation)
        if explained is error:
            raise
        raise explained from None
