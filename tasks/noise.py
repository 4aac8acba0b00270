"""Messages of libraries that tell a user of this program nothing, silenced one by one."""

import logging
import warnings


def quiet() -> None:
    """Silence them. Everything that a user could act on still shows."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).addFilter(_is_news)
    # Lightning's own use of torch's pytree, and its advice on settings that are this program's choice.
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",
        r".*does not have many workers which may be a bottleneck.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Consider setting `persistent_workers=True`.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    boring = ("Tip:", "GPU available:", "TPU available:", "HPU available:", "💡")
    return not text.lstrip().startswith(boring) and "`Trainer.fit` stopped" not in text
