"""Time of a training step of our language model against others, and its peak memory.

A step is forward, cross entropy, backward, clipping of the gradient and fused AdamW, in float32,
with dropout off. All models take the same batches of random tokens, and take turns in one process.
Their ratio is their time over ours: the median over rounds. The peak memory of a step with a large
vocabulary is that of a process each.

    python -m benchmarks.training_step [--rounds 9] [--threads 2] [--output PAGE]
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from attention_zoo import create_attention, create_position
from attention_zoo.models import LanguageModel
from attention_zoo.models.chunked_cross_entropy import chunked_cross_entropy, max_logits
from attention_zoo.tasks.training.memory import peak_resident_bytes, reset_peak_memory
from attention_zoo.tasks.views.tables import Table, markdown_table
from benchmarks.measuring import CLOCKS, create_parser, describe_ratios, write_page

STEPS = 2  # of each model in a round


class Shape(NamedTuple):
    """The sizes of a model and of its batches."""

    layers: int
    dim: int
    heads: int
    length: int
    batch: int
    vocabulary: int

    def __str__(self) -> str:
        return f"{self.layers} layers, width {self.dim}, {self.batch} × {self.length} tokens"


SHAPES = (Shape(4, 128, 4, 64, 12, 65), Shape(6, 384, 6, 256, 8, 65))
LARGE_VOCABULARY = Shape(4, 256, 4, 256, 8, 32_000)

INTRODUCTION = """# Training step

Forward, cross entropy, backward, clipping of the gradient and fused AdamW, in float32,
without dropout. All models take the same batches of random tokens, and take turns in one process.
The ratio is their time over that of *ours*: above 1, ours is faster. Times are {clock} seconds with
{threads} threads; medians of {rounds} rounds, the smallest and the largest in brackets. This
command makes the page:

    python -m benchmarks.training_step --rounds {rounds} --threads {threads} --clock {clock} \\
        --output PAGE

Of a machine that others use too, `--threads 1 --clock cpu` gives steadier ratios than `wall`.

- *ours* is `multi_head` with `position=learned`, LayerNorm, GELU and one table for input and
  output.
- *ours, as trained*: the same with `position=rotary`, RMSNorm and squared ReLU, as
  `attention-zoo train` has them.
- *bare* is the same model as *ours*, with the same parameters, in plain PyTorch: one matrix for
  queries, keys and values, and `scaled_dot_product_attention(…, is_causal=True)`.
- *torch.nn* is `TransformerEncoder` with a causal mask; it has a bias in every projection.
- *GPT-2* and *Llama* are those of transformers {transformers} with SDPA. Llama has rotary
  positions, RMSNorm and SwiGLU; its feed-forward has as many parameters.
- *x-transformers* is its `Decoder` with `attn_flash`, version {x_transformers}.
"""

MEMORY = f"""
A process each takes three steps with a vocabulary of {LARGE_VOCABULARY.vocabulary:,} tokens and the
sizes {LARGE_VOCABULARY}. Libraries, and what they allocate in a step of a small model, are in the
first column and not in the others.
"""


class BareLayer(nn.Module):
    """A layer of a decoder, as plain as PyTorch has it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.expand, self.contract = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        attended = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, dim))
        return x + self.contract(gelu(self.expand(self.norm(x))))


class BareDecoder(nn.Module):
    """A language model of bare layers."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.positions = nn.Embedding(shape.length, shape.dim)
        self.layers = nn.Sequential(
            *(BareLayer(shape.dim, shape.heads) for _ in range(shape.layers))
        )
        self.norm = nn.LayerNorm(shape.dim)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.norm(self.layers(x)) @ self.embedding.weight.T


class TorchDecoder(BareDecoder):
    """The same with `torch.nn.TransformerEncoder` as layers."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        layer = nn.TransformerEncoderLayer(
            *(shape.dim, shape.heads, 4 * shape.dim),
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        encoder = nn.TransformerEncoder(layer, shape.layers, enable_nested_tensor=False)
        mask = nn.Transformer.generate_square_subsequent_mask(shape.length)
        self.layers = encoder  # type: ignore[assignment]
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.norm(self.layers(x, mask=self.mask, is_causal=True)) @ self.embedding.weight.T


def our_model(shape: Shape, *, position: str = "learned", **options: Any) -> nn.Module:
    """Return our language model; the position and options are those that differ from *bare*."""
    alike = {"norm": "layer", "activation": "gelu", "dropout": 0.0, "scale_embedding": False}
    positions = {"max_length": shape.length} if position == "learned" else {}
    return LanguageModel(
        vocabulary_size=shape.vocabulary,
        layers=shape.layers,
        dim=shape.dim,
        ffn_dim=4 * shape.dim,
        attention=partial(create_attention, "multi_head", heads=shape.heads),
        position=partial(create_position, position, **positions),
        **alike | options,
    )


def gpt2(shape: Shape) -> Callable[[Tensor], Tensor]:
    """Return GPT-2 of transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.length,
        n_embd=shape.dim,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(config)


def llama(shape: Shape) -> Callable[[Tensor], Tensor]:
    """Return Llama of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.length,
        hidden_size=shape.dim,
        # Three matrices, not two.
        intermediate_size=round(4 * shape.dim * 2 / 3),
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def x_transformer(shape: Shape) -> Callable[[Tensor], Tensor]:
    """Return the decoder of x-transformers."""
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=shape.dim,
        depth=shape.layers,
        heads=shape.heads,
        attn_dim_head=shape.dim // shape.heads,
        attn_flash=True,
    )
    return TransformerWrapper(
        num_tokens=shape.vocabulary,
        max_seq_len=shape.length,
        attn_layers=layers,
        tie_embedding=True,
    )


MODELS: dict[str, tuple[Callable[[Shape], Any], str]] = {
    "ours": (our_model, "torch"),
    "ours, as trained": (
        partial(our_model, position="rotary", norm="rms", activation="relu_squared"),
        "torch",
    ),
    "bare": (BareDecoder, "torch"),
    "torch.nn": (TorchDecoder, "torch"),
    "GPT-2": (gpt2, "transformers"),
    "Llama": (llama, "transformers"),
    "x-transformers": (x_transformer, "x_transformers"),
}


class Training:
    """A model and its optimiser."""

    def __init__(self, name: str, shape: Shape) -> None:
        torch.manual_seed(0)
        self.model = MODELS[name][0](shape).train()
        # The rule of `attention-zoo train`.
        logits = shape.batch * shape.length * shape.vocabulary
        self.takes_chunks = logits > max_logits(torch.device("cpu"))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return sum(x.numel() for x in self.model.parameters())

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of targets [b·t] after tokens [b t]."""
        if isinstance(self.model, LanguageModel) and self.takes_chunks:
            hidden = self.model(tokens, head=nn.Identity()).flatten(0, 1)
            return chunked_cross_entropy(self.model.head, hidden, targets) / len(targets)
        output = self.model(tokens)
        logits = getattr(output, "logits", output)
        return cross_entropy(logits.flatten(0, 1), targets)

    def step(self, tokens: Tensor) -> None:
        """Take a step on tokens [b 1+t]."""
        self.optimizer.zero_grad()
        self.loss(tokens[:, :-1], tokens[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def measure_seconds(self, batches: list[Tensor], clock: Callable[[], float]) -> float:
        """Return the time of a step on each batch."""
        started = clock()
        for tokens in batches:
            self.step(tokens)
        return clock() - started


def draw_tokens(shape: Shape) -> Tensor:
    """Return random tokens [b 1+t]."""
    return torch.randint(shape.vocabulary, (shape.batch, shape.length + 1))


def installed_models() -> list[str]:
    """Return the names of the models whose package is installed; print the others."""
    names = []
    for name, (_, package) in MODELS.items():
        if find_spec(package) is None:
            print(f"{name} is left out: {package} is not installed")
        else:
            names.append(name)
    return names


def compare_times(shape: Shape, rounds: int, clock: Callable[[], float]) -> list[tuple[str, ...]]:
    """Return a row for each model: its parameters, its time, and the ratio to ours."""
    trainings = {name: Training(name, shape) for name in installed_models()}
    batches = [draw_tokens(shape) for _ in range(STEPS)]
    for training in trainings.values():
        training.measure_seconds(batches, clock)
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    for number in track(range(rounds), description=str(shape)):
        order = [*trainings] if number % 2 else [*trainings][::-1]
        for name in order:
            seconds[name].append(trainings[name].measure_seconds(batches, clock) / STEPS)
    rows = []
    for name, times in seconds.items():
        ratios = [x / ours for x, ours in zip(times, seconds["ours"], strict=True)]
        ratio = "" if name == "ours" else describe_ratios(ratios)
        milliseconds = f"{1000 * statistics.median(times):.1f}"
        rows.append((name, f"{trainings[name].parameters:,}", milliseconds, ratio))
    return rows


def measure_peak(name: str) -> tuple[int, int]:
    """Return the peak memory of this process in three steps, and its memory before them."""
    warm_up = Training(name, Shape(1, 16, 2, 8, 2, 65))
    warm_up.step(draw_tokens(Shape(1, 16, 2, 8, 2, 65)))
    reset_peak_memory(torch.device("cpu"))
    before = peak_resident_bytes()
    training = Training(name, LARGE_VOCABULARY)
    for _ in range(3):
        training.step(draw_tokens(LARGE_VOCABULARY))
    return peak_resident_bytes(), before


def compare_peaks() -> list[tuple[str, ...]]:
    """Return a row for each model: its peak memory, in a process of its own."""
    peaks: dict[str, tuple[int, int]] = {}
    for name in track(installed_models(), description=str(LARGE_VOCABULARY)):
        command = [sys.executable, "-m", "benchmarks.training_step", "--peak", name]
        peaks[name] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    of_ours = peaks["ours"][0] - peaks["ours"][1]
    return [
        (
            name,
            f"{peak / 1e6:,.0f} MB",
            f"{(peak - before) / 1e6:,.0f} MB",
            f"{of_ours / (peak - before):.2f}",
        )
        for name, (peak, before) in peaks.items()
    ]


def main() -> None:
    """Measure times and peaks, and print or write the page."""
    parser = create_parser(__doc__, rounds=9)
    parser.add_argument("--peak", metavar="MODEL", help="print the peak memory of a model alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak is not None:
        print(json.dumps(measure_peak(arguments.peak)))
        return
    versions = {
        name: version(name) if find_spec(name.replace("-", "_")) else "which is not installed"
        for name in ("transformers", "x-transformers")
    }
    page = INTRODUCTION.format(
        threads=arguments.threads,
        clock=arguments.clock,
        rounds=arguments.rounds,
        transformers=versions["transformers"],
        x_transformers=versions["x-transformers"],
    )
    for shape in SHAPES:
        columns = ["model", "parameters", "ms a step", "ratio to ours"]
        table = Table(
            str(shape), columns, compare_times(shape, arguments.rounds, CLOCKS[arguments.clock])
        )
        page += f"\n## {shape}\n\n{markdown_table(table)}\n"
    columns = ["model", "peak of the process", "without what it held before", "ours over theirs"]
    table = Table("", columns, compare_peaks())
    page += f"\n## Memory\n{MEMORY}\n{markdown_table(table)}\n"
    write_page(page, arguments.output)


if __name__ == "__main__":
    main()
