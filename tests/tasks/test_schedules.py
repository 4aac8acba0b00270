import math
import pickle

import pytest
import torch

from attention_zoo.errors import UserError
from attention_zoo.tasks.training import schedules

NAMES = ["constant", "inverse_square_root", "linear", "cosine", "warmup_stable_decay"]


def optimizer(*rates):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups)


def rates(scheduler, steps):
    """The first group's rate at each of the first `steps` updates."""
    seen = []
    for _ in range(steps):
        seen.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_is_linear_and_ends_at_the_peak(name):
    schedule = getattr(schedules, name)(optimizer(0.5), warmup_steps=4, total_steps=20)
    assert rates(schedule, 4) == pytest.approx([0.125, 0.25, 0.375, 0.5])


@pytest.mark.parametrize("name", NAMES)
def test_no_rate_exceeds_the_peak_or_reaches_zero_within_the_run(name):
    schedule = getattr(schedules, name)(optimizer(1.0), warmup_steps=4, total_steps=20)
    seen = rates(schedule, 20)
    assert max(seen) == 1.0
    assert min(seen) > 0


def test_inverse_square_root_is_the_papers_equation_3_over_its_peak():
    width, warmup = 512, 4
    paper = [width**-0.5 * min(n**-0.5, n * warmup**-1.5) for n in range(1, 41)]
    schedule = schedules.inverse_square_root(
        optimizer((width * warmup) ** -0.5), warmup_steps=warmup, total_steps=math.inf
    )
    assert rates(schedule, 40) == pytest.approx(paper, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "halfway", "end"),
    [
        ("constant", {}, 1.0, 1.0),
        ("linear", {"min_lr_ratio": 0.2}, 0.6, 0.2),
        ("cosine", {"min_lr_ratio": 0.2}, 0.6, 0.2),
        ("cosine", {"min_lr_ratio": 1.0}, 1.0, 1.0),
        ("warmup_stable_decay", {"min_lr_ratio": 0.2}, 1.0, 0.2),
    ],
)
def test_values_halfway_and_after_the_last_step(name, options, halfway, end):
    schedule = getattr(schedules, name)(optimizer(1.0), warmup_steps=4, total_steps=20, **options)
    seen = rates(schedule, 30)
    assert seen[12] == pytest.approx(halfway)  # 8 of the 16 steps after warm-up are done
    assert seen[20:] == pytest.approx([end] * 10)


@pytest.mark.parametrize(
    ("decay", "factors"),
    [("linear", [1, 0.75, 0.5, 0.25]), ("sqrt", [1, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5])],
)
def test_warmup_stable_decay_decays_over_its_last_steps_only(decay, factors):
    schedule = schedules.warmup_stable_decay(
        optimizer(1.0), warmup_steps=2, total_steps=20, decay_fraction=0.2, decay=decay
    )
    seen = rates(schedule, 20)
    assert seen[1:16] == [1.0] * 15
    assert seen[16:] == pytest.approx(factors)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "warmup_stable_decay"])
def test_no_warm_up_starts_at_the_peak(name):
    schedule = getattr(schedules, name)(optimizer(1.0), warmup_steps=0, total_steps=10)
    assert rates(schedule, 1) == [1.0]


@pytest.mark.parametrize("name", NAMES)
def test_every_group_keeps_its_own_peak(name):
    schedule = getattr(schedules, name)(optimizer(1.0, 0.1), warmup_steps=4, total_steps=20)
    rates(schedule, 9)
    first, second = (group["lr"] for group in schedule.optimizer.param_groups)
    assert second == pytest.approx(0.1 * first)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_schedule_goes_on_where_it_stood(name, tmp_path):
    make = getattr(schedules, name)
    whole = make(optimizer(1.0), warmup_steps=4, total_steps=20)
    expected = rates(whole, 20)
    first = make(optimizer(1.0), warmup_steps=4, total_steps=20)
    rates(first, 9)
    torch.save([first.state_dict(), first.optimizer.state_dict()], tmp_path / "state.pt")
    second = make(optimizer(1.0), warmup_steps=4, total_steps=20)
    state, groups = torch.load(tmp_path / "state.pt", weights_only=True)
    second.optimizer.load_state_dict(groups)
    second.load_state_dict(state)
    assert rates(second, 11) == expected[9:]


def test_a_run_resumed_with_more_steps_follows_the_longer_shape():
    short = schedules.linear(optimizer(1.0), warmup_steps=0, total_steps=10)
    rates(short, 5)
    longer = schedules.linear(optimizer(1.0), warmup_steps=0, total_steps=20)
    longer.load_state_dict(short.state_dict())
    rates(longer, 1)
    assert longer.get_last_lr() == pytest.approx([1 - 6 / 20])


@pytest.mark.parametrize("name", NAMES)
def test_schedules_pickle(name):
    schedule = getattr(schedules, name)(optimizer(1.0), warmup_steps=4, total_steps=20)
    factor = pickle.loads(pickle.dumps(schedule.lr_lambdas[0]))
    assert [factor(done) for done in range(20)] == rates(schedule, 20)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup_steps", [-1, 21])
def test_warm_up_must_fit_into_the_run(name, warmup_steps):
    with pytest.raises(UserError, match=rf"warmup_steps.*{warmup_steps}"):
        getattr(schedules, name)(optimizer(1.0), warmup_steps=warmup_steps, total_steps=20)


@pytest.mark.parametrize("name", ["linear", "cosine", "warmup_stable_decay"])
@pytest.mark.parametrize("min_lr_ratio", [-0.1, 1.5])
def test_min_lr_ratio_is_a_factor(name, min_lr_ratio):
    with pytest.raises(UserError, match=rf"\[0, 1\].*{min_lr_ratio}"):
        getattr(schedules, name)(
            optimizer(1.0), warmup_steps=4, total_steps=20, min_lr_ratio=min_lr_ratio
        )


@pytest.mark.parametrize("name", ["linear", "cosine", "warmup_stable_decay"])
def test_a_decay_needs_an_end(name):
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        getattr(schedules, name)(optimizer(1.0), warmup_steps=4, total_steps=math.inf)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": "cosine"}, "linear, sqrt"),
        ({"decay_fraction": 0.0}, "decay_fraction"),
        ({"decay_fraction": 1.1}, "decay_fraction"),
        ({"decay_fraction": 0.9}, "must fit into the run"),
    ],
)
def test_warmup_stable_decay_refuses(options, message):
    with pytest.raises(UserError, match=message):
        schedules.warmup_stable_decay(optimizer(1.0), warmup_steps=4, total_steps=20, **options)


def test_inverse_square_root_needs_warm_up():
    with pytest.raises(UserError, match="at least 1"):
        schedules.inverse_square_root(optimizer(1.0), warmup_steps=0, total_steps=20)
