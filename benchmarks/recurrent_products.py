"""Speed of the products that recurrent attention trains by, against other implementations.

Each pair gets the same inputs, in float32, and takes turns in one process. The ratio is their time
over ours, forward and backward: the median over rounds, and the smallest and largest.

- A state with one decay per head, against a plain triangular form: exponentials of differences of
  one cumulated sum, inside chunks of 64 tokens.
- The gated delta rule, against transformers' `torch_chunk_gated_delta_rule` (Qwen3-Next).

    python -m benchmarks.recurrent_products [--rounds 15] [--threads 2] [--output PAGE]
"""

from collections.abc import Callable

import torch
import transformers
from rich.progress import track
from torch import Tensor
from torch.nn.functional import normalize
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from attention_zoo.attention.recurrent.decayed_product import decayed_product
from attention_zoo.attention.recurrent.delta_rule import delta_rule
from attention_zoo.attention.recurrent.steps import Steps
from attention_zoo.tasks.views.tables import Table, markdown_table
from benchmarks.measuring import CLOCKS, create_parser, describe_ratios, write_page

HEADS, CHANNELS = 4, 64
SHAPES = ((8, 64), (8, 1024), (2, 4096))  # batch size and length
CHUNK = 64  # of the plain form

INTRODUCTION = """# Products of recurrent attention

Forward and backward with {heads} heads of {channels} channels in float32. The ratio is their time
over ours: above 1, ours is faster. Times are {clock} seconds with {threads} threads; medians of
{rounds} rounds, in which both take turns, the smallest and the largest in brackets. This command
makes the page:

    python -m benchmarks.recurrent_products --rounds {rounds} --threads {threads} --clock {clock} \\
        --output PAGE

- *plain triangular form*: exponentials of differences of one cumulated sum, in chunks of {chunk}
  tokens. It loses the digits of weak decays after strong ones, which ours keeps.
- *transformers*: `torch_chunk_gated_delta_rule` (Qwen3-Next), version {version}.

"""

Product = Callable[..., Tensor]
Clock = Callable[[], float]


def plain_decayed_product(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """Compute q_t S_t for S_t = a_t S_{t−1} + k_tᵀ v_t, with log a [b h t 1]."""
    q, k, v, decay = (x.unflatten(2, (-1, CHUNK)) for x in (q, k, v, decay))
    sums = decay[..., 0].cumsum(-1)
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool).triu(1)
    differences = sums[..., :, None] - sums[..., None, :]
    triangle = differences.masked_fill(later, float("-inf")).exp()
    within = (q @ k.mT * triangle) @ v
    additions = (k * (sums[..., -1:] - sums).exp()[..., None]).mT @ v
    state = torch.zeros_like(additions[:, :, 0])
    states = []
    factors = sums[..., -1, None, None].exp().unbind(2)
    for addition, factor in zip(additions.unbind(2), factors, strict=True):
        states.append(state)
        state = factor * state + addition
    return (within + q * sums.exp()[..., None] @ torch.stack(states, dim=2)).flatten(2, 3)


def our_decayed_product(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """Compute `plain_decayed_product` by the library."""
    return decayed_product(Steps(q, k, v, decay=decay))[0]


def their_delta_rule(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor) -> Tensor:
    """Compute the gated delta rule by transformers, which divides queries by √c."""
    q, k, v = (x.transpose(1, 2) for x in (q * CHANNELS**0.5, k, v))
    decay, rate = (x[..., 0].transpose(1, 2) for x in (decay, rate))
    out, _ = torch_chunk_gated_delta_rule(q, k, v, decay, rate, output_final_state=True)
    return out.transpose(1, 2)


def our_delta_rule(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor) -> Tensor:
    """Compute the gated delta rule by the library."""
    return delta_rule(Steps(q, rate * k, v, erase=k, decay=decay))[0]


CASES: dict[str, tuple[Product, Product, bool]] = {
    "one decay per head, against a plain triangular form": (
        our_decayed_product,
        plain_decayed_product,
        False,
    ),
    "gated delta rule, against transformers": (our_delta_rule, their_delta_rule, True),
}


def draw_inputs(batch: int, length: int, has_rate: bool) -> list[Tensor]:
    """Return unit queries and keys, values, decays and perhaps rates, as they are at the start."""
    q, k, v = (torch.randn(batch, HEADS, length, CHANNELS) for _ in range(3))
    numbers = [-0.3 * torch.rand(batch, HEADS, length, 1), torch.rand(batch, HEADS, length, 1)]
    inputs = [normalize(q, dim=-1), normalize(k, dim=-1), v, *numbers[: 1 + has_rate]]
    return [x.requires_grad_() for x in inputs]


def measure_seconds(product: Product, inputs: list[Tensor], weights: Tensor, clock: Clock) -> float:
    """Return the time of forward and backward."""
    started = clock()
    torch.autograd.grad(product(*inputs), inputs, weights)
    return clock() - started


def compare(
    ours: Product, theirs: Product, inputs: list[Tensor], rounds: int, clock: Clock
) -> list[float]:
    """Return the ratios of all rounds; raise AssertionError if the results differ."""
    weights = torch.randn_like(inputs[2])
    torch.testing.assert_close(ours(*inputs), theirs(*inputs), rtol=1e-4, atol=1e-4)
    ratios = []
    for _ in range(rounds):
        ours_first = measure_seconds(ours, inputs, weights, clock)
        ratios.append(measure_seconds(theirs, inputs, weights, clock) / ours_first)
    return ratios


def main() -> None:
    """Measure all cases, and print or write the table."""
    arguments = create_parser(__doc__, rounds=15).parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = []
    jobs = [(label, *case, shape) for label, case in CASES.items() for shape in SHAPES]
    for label, ours, theirs, has_rate, (batch, length) in track(jobs, "Products"):
        inputs = draw_inputs(batch, length, has_rate)
        ratios = compare(ours, theirs, inputs, arguments.rounds, CLOCKS[arguments.clock])
        rows.append([label, f"{batch}", f"{length:,}", describe_ratios(ratios)])
    table = Table("", ["product", "batch", "tokens", "ratio"], rows)
    introduction = INTRODUCTION.format(
        heads=HEADS,
        channels=CHANNELS,
        threads=arguments.threads,
        clock=arguments.clock,
        rounds=arguments.rounds,
        chunk=CHUNK,
        version=transformers.__version__,
    )
    write_page(f"{introduction}{markdown_table(table)}\n", arguments.output)


if __name__ == "__main__":
    main()
