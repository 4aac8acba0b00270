"""Approximations of attention, against flash-linear-attention's plain forms and transformers."""

import torch
from transformers import FNetConfig, NystromformerConfig
from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform, FNetFourierTransform
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from attention_zoo import create_attention
from attention_zoo.masks import Mask
from tests.parity.compared import Outcome, fla, fla_class, outcome, parity

DIM, HEADS, LENGTH = 32, 4, 70


@parity("taylor", "flash-linear-attention naive_parallel_based")
def taylor() -> tuple[Outcome, Outcome]:
    """Theirs adds 10⁻⁶ to denominators that are at least half the number of keys."""
    ours = create_attention("taylor", dim=DIM, heads=HEADS, role="causal")
    # Enough for the square to count.
    x = (3.0 * torch.randn(2, LENGTH, DIM)).requires_grad_()
    q, (k, v) = ours.project_query(x), ours.project_key_value(x)
    expected = fla("based").naive_parallel_based(q, k, v)
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(ours.project_output(expected, x), leaves)


@parity("rebased", "flash-linear-attention naive_parallel_rebased")
def rebased() -> tuple[Outcome, Outcome]:
    """In float64: where q·k is near 0, ours sums squares that nearly cancel, theirs does not.

    Their sums come without their denominators, whose 10⁻⁶ is not ours; to both sums our ε is added,
    once for each key.
    """
    ours = create_attention("rebased", dim=DIM, heads=HEADS, role="causal").double()
    features = ours.feature_map
    with torch.no_grad():
        for parameter in features.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64, requires_grad=True)
    q, (k, v) = ours.project_query(x), ours.project_key_value(x)
    q, k = features.query_norm(q), features.key_norm(k)
    numerator, denominator = (
        fla("rebased").naive_parallel_rebased(q, k, values, use_norm=False)
        + 0.01 * values.cumsum(dim=2)
        for values in (v, torch.ones_like(v))
    )
    expected = numerator / denominator
    leaves = [x, *ours.parameters()]
    return outcome(ours(x), leaves), outcome(ours.project_output(expected, x), leaves)


@parity("hedgehog", "flash-linear-attention HedgehogFeatureMap")
def hedgehog() -> tuple[Outcome, Outcome]:
    """Their map of a layer is ours of one head; its features are weighed as by `linear`."""
    ours = create_attention("hedgehog", dim=DIM, heads=1, role="causal")
    features = ours.feature_map
    maps = [fla_class("modules/feature_map.py", "HedgehogFeatureMap")(DIM) for _ in range(2)]
    with torch.no_grad():
        for parameter in features.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        weights = (features.query_weight, features.key_weight)
        biases = (features.query_bias, features.key_bias)
        for theirs, weight, bias in zip(maps, weights, biases, strict=True):
            theirs.layer.weight.copy_(weight[0])
            theirs.layer.bias.copy_(bias[0, 0])
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    q, (k, v) = ours.project_query(x), ours.project_key_value(x)
    products = (maps[0](q) @ maps[1](k).transpose(-2, -1)).tril()
    expected = products / products.sum(dim=-1, keepdim=True) @ v
    leaves = [x, *ours.query.parameters(), *ours.value.parameters()]
    return outcome(ours(x), leaves), outcome(ours.project_output(expected, x), leaves)


@parity("nystrom", "transformers NystromformerSelfAttention")
def nystrom() -> tuple[Outcome, Outcome]:
    """With the inverse started for each head by itself, an option that their config cannot set.

    In float64: the gradient through an inverse in six steps enlarges the roundings of float32.
    """
    ours = create_attention(
        "nystrom", dim=DIM, heads=HEADS, role="global", landmarks=10, convolution=5, bias=True
    ).double()
    with torch.no_grad():
        # So that means of tokens differ.
        ours.query.weight.mul_(4.0)
        ours.key.weight.mul_(4.0)
    config = NystromformerConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_landmarks=10,
        segment_means_seq_len=LENGTH,
        conv_kernel_size=5,
        attention_probs_dropout_prob=0.0,
    )
    theirs = NystromformerSelfAttention(config).double()
    theirs.init_option = "exact"
    for part in ("query", "key", "value"):
        getattr(theirs, part).load_state_dict(getattr(ours, part).state_dict())
    theirs.conv.load_state_dict(ours.convolution.state_dict())
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64, requires_grad=True)
    expected = ours.output(theirs(x)[0])
    return (
        outcome(ours(x), [x, ours.query.weight, ours.value.bias, ours.convolution.weight]),
        outcome(expected, [x, theirs.query.weight, theirs.value.bias, theirs.conv.weight]),
    )


@parity("fourier", "transformers FNetBasicFourierTransform")
def fourier() -> tuple[Outcome, Outcome]:
    ours = create_attention("fourier", dim=DIM, role="global")
    theirs = FNetBasicFourierTransform(FNetConfig(hidden_size=DIM))
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    return outcome(ours(x), [x]), outcome(theirs(x)[0], [x])


@parity("fourier", "transformers FNetFourierTransform of each row's own length")
def fourier_of_real_tokens() -> tuple[Outcome, Outcome]:
    """Theirs knows no padding: it gets the real tokens of each row alone, and adds their norm."""
    ours = create_attention("fourier", dim=DIM, role="global")
    theirs = FNetFourierTransform(FNetConfig(hidden_size=DIM))
    x = torch.randn(2, LENGTH, DIM, requires_grad=True)
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[1, :30] = real[1, 40] = False
    found = theirs.output(ours(x, mask=Mask(key_mask=real)), x)
    expected = [theirs(row[own][None])[0] for row, own in zip(x, real, strict=True)]
    return (
        outcome(found[real], [x]),
        outcome(torch.cat(expected, dim=1)[0], [x]),
    )
