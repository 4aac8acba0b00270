"""The candidates of a comparison: the jobs that a sweep of the same overrides would have."""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from attention_zoo.errors import UserError
from attention_zoo.tasks.comparison.candidate import Candidate
from attention_zoo.tasks.comparison.settings import RATE
from attention_zoo.tasks.comparison.trainings import without


class CandidateConfigs:
    """The overrides of all candidates, and the configs that are composed of them.

    Args:
        arguments: overrides, some of which have several values.
        config: of the comparison.
        own_options: those of the comparison, which its candidates do not have.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        config: DictConfig,
        loader: ConfigLoader,
        own_options: Sequence[str],
    ) -> None:
        self.swept, overrides = combine_overrides(arguments, loader, own_options)
        for name in (x.lstrip("+") for x in self.swept):
            if name in (RATE, "seed", *own_options):
                raise UserError(
                    f"compare tunes {RATE} and repeats seeds itself, got several values of {name}; "
                    "give one."
                )
        # A scoreboard compares it with others.
        if len(overrides) < 2 and config.scoreboard is None:
            chosen = [x for x in arguments if x.partition("=")[0] not in own_options]
            raise UserError(
                "compare needs two candidates or more, such as attention=multi_head,linear, got "
                f"{' '.join(chosen) or 'no option with several values'}."
            )

        def compose(overrides: Sequence[str]) -> DictConfig:
            return loader.load_sweep_config(config, [*overrides])

        self.sizes = config.sizes
        if self.sizes > 1:
            for name in {"model.dim", "model.ffn_dim"} & {x.lstrip("+") for x in self.swept}:
                raise UserError(f"sizes={self.sizes} varies {name} itself; give one value of it.")
            overrides = [sized for x in overrides for sized in at_widths(x, compose(x), self.sizes)]
        self.overrides = overrides
        self.configs = [compose(x) for x in overrides]

    def shared_value(self, option: str) -> Any:
        """Return the value of an option that must be the same for all candidates."""
        values = dict.fromkeys(OmegaConf.select(config, option) for config in self.configs)
        if len(values) > 1:
            raise UserError(
                f"all candidates must have the same {option}, got {', '.join(map(str, values))}."
            )
        return next(iter(values))

    def create_candidates(self) -> list[Candidate]:
        """Return a candidate for each config."""
        candidates = []
        for overrides, config in zip(self.overrides, self.configs, strict=True):
            center = OmegaConf.select(config, RATE)
            if not isinstance(center, int | float) or center <= 0:
                raise UserError(f"compare tunes {RATE}, got {center}; give a rate above 0.")
            chosen = [x for x in overrides if x.partition("=")[0] in self.swept]
            name = " ".join(map(short_name, chosen))
            # Without sizes, all are compared with each other, also if they differ in width.
            width = (config if self.sizes > 1 else self.configs[0]).model.dim
            label = name if self.sizes == 1 else f"{name} dim={width}"
            candidates.append(Candidate(overrides, name, width, label, float(center)))
        return candidates


def combine_overrides(
    arguments: Sequence[str], loader: ConfigLoader, own_options: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Return the options that have several values, and the overrides of each combination of them.

    The combinations are without the options of the command itself.
    """
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*arguments])
    swept = [x.get_key_element() for x in parsed if x.is_sweep_override()]
    options = [x for x in parsed if x.get_key_element() not in own_options]
    (combinations,) = BasicSweeper.split_arguments(options, None)
    return swept, [[*x] for x in combinations]


def at_widths(overrides: Sequence[str], config: DictConfig, sizes: int) -> list[list[str]]:
    """Return the overrides of a candidate at several widths, each twice the one before.

    The config's own width is the middle one, or that after the middle.
    """
    model, sized = config.model, []
    for power in range(-(sizes // 2), sizes - sizes // 2):
        widths = {"dim": model.dim * 2.0**power}
        if model.get("ffn_dim") is not None:
            widths["ffn_dim"] = model.ffn_dim * 2.0**power
        if any(x < 1 or x != int(x) for x in widths.values()):
            raise UserError(
                f"sizes={sizes} halves model.dim={model.dim} and model.ffn_dim="
                f"{model.get('ffn_dim')} {sizes // 2} times; give widths that can be."
            )
        kept = overrides
        for name in widths:
            kept = without(kept, f"model.{name}")
        sized.append([*kept, *(f"model.{name}={int(x)}" for name, x in widths.items())])
    return sized


def short_name(override: str) -> str:
    """Return what an override chooses: `linear` for attention=linear, `dim=64` for model.dim=64."""
    key, _, value = override.partition("=")
    if key in ("attention", "position", "stack"):
        return value
    return f"{key.replace('@', '.').rpartition('.')[2]}={value}"
