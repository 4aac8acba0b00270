"""Start from the weights of a checkpoint, and train a part of the parameters."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo.errors import UserError
from attention_zoo.tasks.configuration.build import build_model
from attention_zoo.tasks.data.tokenizers import restore_tokenizer, tokenizer_from_state
from attention_zoo.tasks.training.checkpoints import compare_weights
from attention_zoo.zoo import unknown_name_message

SHOWN_NAMES = 3  # of weights, in messages; results.json has all


class InitialWeights:
    """The weights and the tokenizer of `init_from`, to begin a training with.

    Args:
        config: the composed config.
        checkpoint: the one that `init_from` names.

    Raises:
        UserError: the model has other weights than the checkpoint, and `strict` is true; or `match`
            would change the model.
    """

    def __init__(self, config: Mapping[str, Any], checkpoint: dict[str, Any]) -> None:
        if config["match"] is not None:
            raise UserError(
                f"init_from keeps the sizes of its model, and match={config['match']} would change "
                "them; leave match out."
            )
        state = checkpoint["attention_zoo"]["tokenizer"]
        self.tokenizer = partial(restore_tokenizer, state=state)
        self.file = config["init_from"]
        saved = checkpoint["state_dict"].items()
        self.weights: dict[str, Tensor] = {
            name.removeprefix("model."): x for name, x in saved if name.startswith("model.")
        }
        tokenizer = tokenizer_from_state(state)
        sizes = {"vocabulary_size": tokenizer.vocabulary_size, "pad_id": tokenizer.pad_id}
        with torch.device("meta"):
            expected = build_model(config, **sizes).state_dict()
        self.differences = group_differences(compare_weights(self.weights, expected))
        if config["strict"] and (differences := self.list_differences()):
            raise UserError(
                f"the composed model has other weights than {self.file}: {differences}. "
                "Compose the model of the checkpoint, or load the weights that fit: strict=false."
            )

    def load(self, model: nn.Module) -> None:
        """Load the weights that fit the model; its others stay as they were drawn."""
        for name, weights in model.state_dict().items():
            if name in self.weights and self.weights[name].shape == weights.shape:
                weights.copy_(self.weights[name])

    def describe(self) -> str:
        """Return a line for the user: what the training starts from, and what did not fit."""
        line = f"init_from={self.file}: the weights, the tokenizer and the model of this checkpoint"
        return (
            f"{line}, without {self.list_differences()}" if any(self.differences.values()) else line
        )

    def list_differences(self) -> str:
        """Return the differences as "2 missing (a, b), 1 extra (c)"."""
        parts = []
        for kind, names in self.differences.items():
            if names:
                shown = ", ".join(names[:SHOWN_NAMES]) + ", …" * (len(names) > SHOWN_NAMES)
                parts.append(f"{len(names)} {kind.replace('_', ' ')} ({shown})")
        return ", ".join(parts)

    def record(self) -> dict[str, Any]:
        """Return the file, and the names of the weights that did not fit, for `results.json`."""
        return {"file": self.file, **self.differences}


def group_differences(
    differences: Mapping[str, tuple[list[int] | None, list[int] | None]],
) -> dict[str, list[str]]:
    """Return the names of weights that are missing in a checkpoint, extra, or of another shape."""
    kinds: dict[str, list[str]] = {"missing": [], "extra": [], "of_another_shape": []}
    for name, (saved, expected) in differences.items():
        if saved is None or expected is None:
            kinds["missing" if saved is None else "extra"].append(name)
        else:
            kinds["of_another_shape"].append(f"{name} {saved} for {expected}")
    return kinds


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Exclude the parameters that match a pattern from training; return their names.

    `*` in a pattern stands for any characters, dots too: `encoder.*` matches all parameters of the
    encoder. A parameter that two modules share is frozen under either name.

    Raises:
        UserError: a pattern matches no parameter, or nothing is left to train.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        matches = [name for name in parameters if fnmatchcase(name, pattern)]
        if not matches:
            parts = [f"{name}.*" for name, _ in model.named_children()]
            raise UserError(unknown_name_message("parameter that matches", pattern, parts))
        for name in matches:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(f"freeze={list(patterns)} leaves no parameter to train; freeze fewer.")
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
