"""Order, seeds and rates are functions of keys and of the recipe; nothing moves when one leaves."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sisa import determinism
from sisa.config import Training
from sisa.determinism import StagePlan, cuts, init_seed, mix, scatter, stage_epochs

MASK = (1 << 64) - 1

word = st.integers(0, MASK)
words = st.lists(word, max_size=80, unique=True).map(lambda w: np.array(sorted(w), dtype=np.uint64))


def splitmix64(state):
    """As published: Steele, Lea and Flood, OOPSLA 2014; one step of the generator."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def keys_of(count, seed=0):
    return np.sort(np.random.default_rng(seed).integers(0, MASK, count, dtype=np.uint64))


def plan(found, shard=0, slice_=1, slices=4, **training):
    return StagePlan(Training.model_validate(training), slices, shard, slice_, found)


def order(made):
    """The record words of each epoch, in the order in which they are visited."""
    return [made.words[rows].tolist() for rows in made.epochs]


def test_splitmix_gives_the_published_values():
    """The first outputs of the reference implementation for the seed 1234567."""
    state, found = 1234567, []
    for _ in range(3):
        found.append(splitmix64(state))
        state = (state + 0x9E3779B97F4A7C15) & MASK
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.lists(st.integers(-(2**70), 2**70), max_size=6))
def test_mix_chains_splitmix(parts):
    expected = 0
    for part in parts:
        expected = splitmix64(expected ^ (part & MASK))
    assert mix(*parts) == expected


@given(st.lists(word, max_size=20), word)
def test_scatter_is_splitmix_of_each_word(some, start):
    found = scatter(np.array(some, dtype=np.uint64), start)
    assert found.dtype == np.uint64
    assert found.tolist() == [splitmix64(w ^ start) for w in some]


def test_words_of_fixed_arguments_never_change():
    assert mix(0, 1, 2) == 6768782832058643234
    assert scatter(np.arange(3, dtype=np.uint64), 7).tolist() == [
        7191089600892374487,
        13647215125184110592,
        7134611160154358618,
    ]
    assert init_seed(Training(), 3) == 2027166855555985636


def test_a_fixed_plan_never_changes():
    some = np.sort(scatter(np.arange(7, dtype=np.uint64), 7))
    made = plan(some, shard=1, slice_=2, epochs=3.75, batch_size=3, seed=5)
    assert [(s.rows.tolist(), s.seed, s.lr) for s in made] == [
        ([6, 0, 3], 5422938199369154554, 0.05),
        ([1, 5, 2, 4], 5519110984353679635, 0.05),
        ([0, 3, 6], 313158162989089060, 0.05),
    ]


def test_scatter_warns_of_no_overflow():
    with np.errstate(over="raise"):
        scatter(np.array([MASK], dtype=np.uint64), MASK)


@pytest.mark.parametrize(
    ("epochs", "slices", "expected"),
    [
        (10, 4, Fraction(4)),
        (10, 1, Fraction(10)),
        (10, 3, Fraction(5)),
        (1, 4, Fraction(2, 5)),
        (7, 2, Fraction(14, 3)),
        (0.5, 1, Fraction(1, 2)),
    ],
)
def test_a_stage_takes_its_part_of_the_epochs(epochs, slices, expected):
    for slice_ in (1, slices, slices + 3):
        assert stage_epochs(Training(epochs=epochs), slices, slice_) == expected


@pytest.mark.parametrize("slices", [1, 2, 5, 50])
@pytest.mark.parametrize("last", [1, 0.25, 3, 7.5])
def test_all_stages_together_visit_what_unsliced_training_visits(slices, last):
    """Stage r sees r of R equal slices."""
    training = Training(epochs=12, last_stage_epochs=last)
    epochs = [stage_epochs(training, slices, r) for r in range(1, slices + 1)]
    assert sum(e * Fraction(r, slices) for r, e in enumerate(epochs, 1)) == 12
    appended = stage_epochs(training, slices, slices + 1)
    assert {*epochs[:-1], appended} == {epochs[-1] / Fraction(last)}


@given(words, st.integers(1, 80), st.integers(1, 30), st.integers(1, 6), st.integers(1, 9))
@settings(deadline=None)
def test_samples_are_the_rows_of_all_steps(found, tenths, batch, smallest, slices):
    made = plan(
        found,
        slices=slices,
        epochs=tenths / 10,
        batch_size=max(batch, smallest),
        min_batch=smallest,
    )
    steps = list(made)
    assert made.samples == sum(len(s.rows) for s in steps)
    assert made.steps == len(steps)
    assert all(smallest <= len(s.rows) < made.training.batch_size + smallest for s in steps)
    visited = np.concatenate([np.array([], dtype=int), *(s.rows for s in steps)])
    assert visited.tolist() == [n for rows in made.epochs for n in rows]


@given(words, st.floats(0.05, 6), st.integers(1, 5))
@settings(deadline=None)
def test_whole_epochs_visit_every_record_once_and_a_partial_one_a_fraction(found, epochs, slices):
    made = plan(found, slices=slices, epochs=epochs, min_batch=1)
    whole, rest = divmod(stage_epochs(made.training, slices, 1), 1)
    assert len(made.epochs) == whole + (rest > 0)
    for rows in made.epochs[: int(whole)]:
        assert sorted(rows) == list(range(len(found)))
    for rows in made.epochs[int(whole) :]:
        assert len(set(rows.tolist())) == len(rows)


def test_a_partial_epoch_takes_about_its_fraction():
    made = plan(keys_of(40_000), epochs=1, slices=4)  # 2/5 of an epoch
    (rows,) = made.epochs
    assert abs(len(rows) / 40_000 - 0.4) < 0.01


def test_a_partial_epoch_takes_those_whose_hash_is_under_the_fraction():
    found = keys_of(50)
    made = plan(found, shard=2, slice_=3, epochs=1, slices=4, seed=9)
    (rows,) = made.epochs
    start = mix(9, 2, 3, 0, 1)
    hashes = {int(w): splitmix64(int(w) ^ start) for w in found}
    chosen = [w for w in hashes if hashes[w] * 5 < 2 << 64]
    assert found[rows].tolist() == sorted(chosen, key=hashes.__getitem__)


@given(words, st.data(), st.sampled_from([2.0, 3.7, 0.9, 12.0]))
@settings(deadline=None)
def test_taking_records_out_moves_no_other(found, data, epochs):
    keep = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(found), max_size=len(found))), dtype=bool
    )
    before = order(plan(found, epochs=epochs, min_batch=1))
    after = order(plan(found[keep], epochs=epochs, min_batch=1))
    left = set(found[keep].tolist())
    assert after == [[w for w in epoch if w in left] for epoch in before]


def test_every_epoch_shard_and_stage_has_an_order_of_its_own():
    found = keys_of(60)
    orders = [
        tuple(epoch)
        for seed in (0, 1)
        for shard in (0, 1)
        for slice_ in (1, 2)
        for epoch in order(plan(found, shard, slice_, epochs=10, seed=seed))
    ]
    assert len(orders) == 32
    assert len(set(orders)) == 32


def test_the_number_of_slices_decides_epochs_and_nothing_else_of_the_order():
    found = keys_of(60)
    few, many = (order(plan(found, slices=s, epochs=20)) for s in (3, 7))
    assert few[: len(many)] == many


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (0, []),
        (1, []),
        (2, []),
        (3, [3]),
        (8, [8]),
        (10, [10]),
        (11, [8, 3]),
        (16, [8, 8]),
        (18, [8, 10]),
        (19, [8, 8, 3]),
    ],
)
def test_a_last_batch_that_is_too_small_joins_the_one_before(rows, sizes):
    bounds = cuts(rows, Training(batch_size=8, min_batch=3))
    assert [b - a for a, b in bounds] == sizes
    assert [n for a, b in bounds for n in range(a, b)] == list(range(rows if sizes else 0))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_an_epoch_with_too_few_records_takes_no_step_and_counts_no_sample(rows):
    made = plan(keys_of(rows), epochs=10, min_batch=3)
    assert (list(made), made.samples, made.steps) == ([], 0, 0)
    assert [len(e) for e in made.epochs] == [0, 0, 0, 0]


def rates(made):
    return [s.lr for s in made]


def test_the_last_stage_visits_its_multiple_and_an_appended_one_does_not():
    found = keys_of(400)
    training = {"epochs": 10, "last_stage_epochs": 4, "batch_size": 10}
    made = [plan(found, slice_=r, slices=4, **training) for r in range(1, 7)]
    # e = 2 * 10 / (4 - 1 + 2 * 4) = 20 / 11, and 80 / 11 for stage 4
    lengths = [[len(e) for e in m.epochs] for m in made]
    assert [len(some) for some in lengths] == [2, 2, 2, 8, 2, 2]
    assert all(some[:-1] == [400] * (len(some) - 1) for some in lengths)
    assert all(abs(some[-1] - 400 * 9 / 11) < 50 for some in lengths[:3])
    assert abs(lengths[3][-1] - 400 * 3 / 11) < 50
    assert [m.samples for m in made] == [sum(some) for some in lengths]


def test_the_rate_is_constant_unless_told_otherwise():
    made = plan(keys_of(50), slice_=4, slices=4, batch_size=10, lr=0.5)
    assert rates(made) == [0.5] * 20


@pytest.mark.parametrize("slice_", [4, 5, 11])
def test_the_last_stage_and_appended_ones_decay_linearly(slice_):
    made = plan(keys_of(50), slice_=slice_, batch_size=10, lr=0.5, schedule="last_stage_linear")
    assert rates(made) == pytest.approx([0.5 * (1 - n / 20) for n in range(20)])
    assert rates(made)[0] == 0.5 and rates(made)[-1] > 0


@pytest.mark.parametrize("slice_", [1, 2, 3])
def test_no_stage_before_the_last_decays(slice_):
    made = plan(keys_of(50), slice_=slice_, batch_size=10, lr=0.5, schedule="last_stage_linear")
    assert rates(made) == [0.5] * 20


FALLS = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
}


@pytest.mark.parametrize("shape", FALLS)
def test_a_cosine_falls_in_the_last_stage_alone_as_a_line_does(shape):
    training = {"batch_size": 10, "lr": 0.5, "schedule": f"last_stage_{shape}"}
    for slice_ in (1, 3):
        assert rates(plan(keys_of(50), slice_=slice_, **training)) == [0.5] * 20
    for slice_ in (4, 7):
        expected = [0.5 * FALLS[shape](n / 20) for n in range(20)]
        assert rates(plan(keys_of(50), slice_=slice_, **training)) == pytest.approx(expected)


@pytest.mark.parametrize("shape", FALLS)
@pytest.mark.parametrize("last", [1, 3])
def test_the_rate_falls_with_the_samples_visited_by_equal_slices(shape, last):
    """Held against a count of samples, stage by stage, of four slices of ten records each."""
    training = {"batch_size": 5, "lr": 0.5, "epochs": 10.5, "last_stage_epochs": last}
    every = [plan(keys_of(10 * r), slice_=r, schedule=shape, **training) for r in (1, 2, 3, 4)]
    epochs = [10.5 * 2 / (3 + 2 * last) * (1 if r < 4 else last) for r in (1, 2, 3, 4)]
    visited = 0.0
    for r, made in enumerate(every, 1):
        own = epochs[r - 1] * 10 * r
        expected = [
            0.5 * FALLS[shape]((visited + own * n / made.steps) / (10.5 * 40))
            for n in range(made.steps)
        ]
        assert rates(made) == pytest.approx(expected)
        visited += own
    assert visited == pytest.approx(10.5 * 40)
    last_rates = rates(every[-1])
    appended = plan(keys_of(40), slice_=6, schedule=shape, **training)
    assert rates(appended)[0] == last_rates[0] and 0 < rates(appended)[-1] < last_rates[0]


def test_one_slice_falls_over_all_of_its_steps():
    whole = plan(keys_of(50), slices=1, epochs=4, batch_size=10, lr=0.5, schedule="linear")
    assert rates(whole) == pytest.approx([0.5 * (1 - n / 20) for n in range(20)])


@pytest.mark.parametrize("schedule", ["constant", "last_stage_linear", "cosine"])
def test_the_rate_rises_over_the_first_steps_of_every_stage(schedule):
    for slice_ in (1, 4):
        training = {"slice_": slice_, "batch_size": 10, "schedule": schedule}
        flat = rates(plan(keys_of(50), **training))
        risen = rates(plan(keys_of(50), warmup=0.25, **training))
        factors = [min(1, (n + 1) / 5) for n in range(20)]
        assert risen == pytest.approx([f * r for f, r in zip(factors, flat, strict=True)])
        assert risen[4:] == flat[4:]


def test_no_rate_depends_on_the_sizes_of_other_slices():
    """Only on the fraction of the stage's own steps."""
    few, many = (
        plan(keys_of(n), slice_=2, batch_size=10, schedule="cosine", warmup=0.5) for n in (50, 100)
    )
    assert rates(many)[::2][10:] == pytest.approx(rates(few)[10:])


def test_seeds_differ_by_every_argument():
    found = keys_of(30)
    seeds = [
        step.seed
        for seed in (0, 1, 2**62)
        for shard in (0, 1, 2)
        for slice_ in (1, 2, 3)
        for step in plan(found, shard, slice_, slices=3, epochs=6, batch_size=10, seed=seed)
    ]
    seeds += [init_seed(Training(seed=seed), shard) for seed in (0, 1) for shard in range(50)]
    assert len(seeds) == 27 * 9 + 100
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


def test_a_seed_is_that_of_its_place():
    steps = list(plan(keys_of(30), 2, 3, slices=3, epochs=4, batch_size=10, seed=7))
    places = [(epoch, batch) for epoch in range(2) for batch in range(3)]
    assert [s.seed for s in steps] == [mix(7, 2, 3, e, b, 2) >> 1 for e, b in places]


READ_BACK = """
import json, sys
import numpy
if sys.argv[1] == "torch":
    import torch
from sisa import determinism
for threads in (2, 1):
    determinism.pin_threads(threads)
    found = determinism.fingerprint(sys.argv[1] == "torch")
    print(json.dumps([found, sorted(sys.modules.keys() & {"torch"})]))
"""


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_threads_are_set_and_read_back(library):
    """In a process of its own: the number is one of the whole process."""
    command = [sys.executable, "-c", READ_BACK, library]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for threads, line in zip((2, 1), lines, strict=True):
        found, loaded = json.loads(line)
        assert loaded == (["torch"] if library == "torch" else [])
        if library == "torch":
            assert found["threads"] == threads
        else:
            assert {pool[-1] for pool in found["blas"]} == {threads}
        assert found["instruction_set"]
        assert found["numpy"] == np.__version__


def test_the_number_of_processors_is_that_of_this_process():
    assert determinism.cpus() >= 1


@pytest.mark.parametrize("ties", [False, True])
def test_the_order_of_hashes_is_that_of_a_stable_sort(ties: bool) -> None:
    words = determinism.scatter(np.arange(20_000, dtype=np.uint64), 7)
    hashes = words % np.uint64(50) if ties else words
    expected = np.argsort(hashes, kind="stable")
    assert np.array_equal(determinism.in_order(hashes), expected)
    assert np.array_equal(np.argsort(hashes), expected) != ties, (
        "ties are what makes the difference"
    )
