"""Evidence: what is measured of a model before and after, whole or honestly left out."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sisa.approximate import answers, inputs, models
from sisa.approximate.asked import Asked
from sisa.approximate.attacked import _cut
from sisa.approximate.batches import Examples, Items
from sisa.approximate.evidence import NOT_EVALUATED
from sisa.approximate.examine import Examination
from sisa.approximate.models import Classifier, LanguageModel
from sisa.approximate.targets import Attacks

from .language import llama, made

ATTACKS = Attacks(lr=1e-3, steps=4, items=3, chunk=5)


def subject(seed: int = 0) -> LanguageModel:
    return LanguageModel(llama(seed))


def asked(**sides: Items | None) -> Asked:
    plain = {
        "forget": made([9, 7, 8, 6], 1),
        "retain": made([8] * 5, 2),
        "holdout": made([7] * 4, 3),
    }
    return Asked(**{**plain, **sides})


def test_a_model_that_did_not_change_gives_the_same_before_and_after() -> None:
    model = subject()
    begun = Examination.begin(model, asked(), ATTACKS, model)
    found, lacking = begun.end(model)
    assert lacking == () and found.verdict == "evaluated"
    assert found.memorisation != NOT_EVALUATED and found.utility != NOT_EVALUATED
    for change in (found.memorisation.probability, found.memorisation.exact, found.utility.exact):
        assert change.before == change.after
    assert found.oracle != NOT_EVALUATED
    assert (found.oracle.distance, found.oracle.p_value) == (0, 1)
    assert found.quantisation != NOT_EVALUATED
    assert all(r.recovered == 1 for r in found.quantisation.bits.values()), "nothing was forgotten"


def test_figures_are_those_of_each_item_alone() -> None:
    model, items = subject(), asked().forget
    found = answers.statistics(model, items, together=3, chunk=2)
    expected = []
    for tokens in items.tokens:
        with torch.no_grad():
            log_p = model.module(input_ids=tokens[None]).logits[0].log_softmax(-1)
        own = [-float(log_p[t, int(tokens[t + 1])]) for t in range(1, len(tokens) - 1)]
        expected.append(torch.tensor(own).mean().neg().exp())
    assert answers.mean_probability(found) == pytest.approx(float(torch.stack(expected).mean()))
    part = answers.of_some(found, [1, 3])
    assert part.items == 2
    alone = answers.statistics(model, items.select([1, 3]))
    assert torch.allclose(part.nll, alone.nll, atol=1e-5)
    assert torch.equal(part.item, alone.item)


def test_the_model_is_left_as_it_is() -> None:
    model = subject()
    before = copy.deepcopy(model.module.state_dict())
    begun = Examination.begin(model, asked(), ATTACKS)
    begun.end(model)
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not model.module.training
    assert all(p.grad is None for p in model.module.parameters())


def test_what_is_not_given_is_not_evaluated_and_said() -> None:
    model = subject()
    begun = Examination.begin(model, asked(retain=None, holdout=None), ATTACKS)
    found, lacking = begun.end(model)
    assert found.utility == found.membership == found.oracle == NOT_EVALUATED
    assert found.verdict == NOT_EVALUATED
    assert [text.split(" was ")[0] for text in lacking] == ["Utility", "Membership"]


def test_utility_of_held_out_items_says_so() -> None:
    model = subject()
    found, _ = Examination.begin(model, asked(retain=None), ATTACKS).end(model)
    assert found.utility != NOT_EVALUATED and found.utility.held_out


def test_one_item_gives_no_statistic() -> None:
    model = subject()
    begun = Examination.begin(model, asked(forget=made([9], 1)), ATTACKS)
    found, lacking = begun.end(model)
    parts = (found.memorisation, found.membership, found.relearning, found.quantisation)
    assert set(parts) == {NOT_EVALUATED} and len(lacking) == 4


def test_a_collapsed_model_has_no_evidence_and_no_error() -> None:
    model = subject()
    begun = Examination.begin(model, asked(), ATTACKS)
    with torch.no_grad():
        next(model.module.parameters()).fill_(float("nan"))
    found, lacking = begun.end(model)
    assert found.verdict == NOT_EVALUATED and len(lacking) == 1


def examples(seed: int, count: int = 12, classes: int = 3) -> Examples:
    """Points whose class is the largest of their first coordinates."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 4, generator=generator)
    return Examples(
        tuple(f"{seed}-{i}" for i in range(count)), points, points[:, :classes].argmax(1)
    )


def test_relearning_leaves_normalisation_as_it_is() -> None:
    """A batch of one item has no variance, and a step of nothing changes nothing."""
    torch.manual_seed(0)
    layers = (torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    model = Classifier(torch.nn.Sequential(*layers))
    how = Attacks(lr=1e-9, steps=6, items=4)
    begun = Examination.begin(model, Asked(examples(1, 10)), how)
    with torch.no_grad():
        layers[2].weight.mul_(0.5)
    found, _ = begun.end(model)
    assert found.relearning != NOT_EVALUATED
    recovery = found.relearning.recovery
    assert recovery.attacked == pytest.approx(recovery.unlearned, abs=1e-6)


def test_relearning_finds_what_was_only_hidden() -> None:
    """A head that was turned down says nothing, and half of the items bring the others back."""
    torch.manual_seed(0)
    head = torch.nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(20 * torch.eye(3, 4))
    model = Classifier(head)
    begun = Examination.begin(model, Asked(examples(1, 40)), Attacks(lr=1e-2, steps=20))
    with torch.no_grad():
        head.weight.mul_(0.001)
    found, _ = begun.end(model)
    assert found.memorisation != NOT_EVALUATED and found.relearning != NOT_EVALUATED
    assert found.memorisation.probability.before > 0.9
    assert found.memorisation.probability.after < 0.4
    assert found.relearning.recovery.recovered > 0.5 and found.relearning.lr == 1.0
    assert found.relearning.items == 20
    still = Attacks(lr=1e-9, steps=1)
    nothing, _ = Examination(begun.asked, begun.before, still).end(model)
    assert nothing.relearning != NOT_EVALUATED and nothing.relearning.recovery.recovered < 0.01


@pytest.mark.parametrize(
    ("unlearned", "attacked", "share"),
    [(0.4, 0.6, 0.5), (0.4, 0.1, 0.0), (0.4, 0.9, 1.0), (0.8, 0.3, 1.0), (0.8 + 1e-8, 0.3, 1.0)],
)
def test_what_was_not_forgotten_counts_as_recovered(
    unlearned: float, attacked: float, share: float
) -> None:
    assert _cut(0.8, unlearned, attacked) == pytest.approx(share)


def test_members_are_told_from_others_in_either_direction() -> None:
    model = subject()
    many = Asked(made([9] * 120, 1), None, made([9] * 120, 3))
    begun = Examination.begin(model, many, ATTACKS)
    found, _ = begun.end(model)
    assert found.membership != NOT_EVALUATED
    assert found.membership.attacks.keys() == {"loss", "min_k", "min_k_plus_plus", "gradient_norm"}
    assert all(a.tpr_at_01_percent == NOT_EVALUATED for a in found.membership.attacks.values())
    loss = found.membership.attacks["loss"]
    assert 0.35 < loss.auc < 0.65, "neither was learned"
    with torch.enable_grad():  # unlearn far too much: the forgotten stand out as unknown
        rows = model.rows(many.forget)
        nll = torch.nn.functional.cross_entropy(rows.head(rows.hidden), rows.labels)
        grads = torch.autograd.grad(-nll, list(model.module.parameters()))
        with torch.no_grad():
            for p, g in zip(model.module.parameters(), grads, strict=True):
                p.sub_(3 * g)
    after, _ = begun.end(model)
    assert after.membership != NOT_EVALUATED
    over = after.membership.attacks["loss"]
    assert over.auc < loss.auc and over.tpr_at_1_percent != NOT_EVALUATED


def test_the_same_items_are_asked_whatever_their_order() -> None:
    items = made([9, 8, 7, 6, 5, 9], 1)
    other = items.select([3, 1, 5, 0, 4, 2])
    first, second = Asked.of(items, None, None, 3), Asked.of(other, None, None, 3)
    assert set(first.forget.digests()) == set(second.forget.digests())
    assert len(first.forget) == 3


def test_unlabelled_items_are_not_asked() -> None:
    items = made([9, 2, 7], 1)
    assert items.counts() == [7, 0, 5]
    assert len(Asked.of(items, None, None).forget) == 2


def test_a_classifier_is_asked_and_attacked_too() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    model = Classifier(module)
    begun = Examination.begin(model, Asked(examples(1), examples(2), examples(3)), ATTACKS)
    found, lacking = begun.end(model)
    assert found.verdict == "evaluated" and lacking == ()


def test_the_texts_of_a_tokenizer_are_compressed(shop: Path) -> None:
    model = models.load(shop / "base")
    forget, never = (
        inputs.read(shop / f"{name}.jsonl", name, model, "Question: {}\nAnswer:", None)
        for name in ("forget", "holdout")
    )
    found, _ = Examination.begin(model, Asked(forget, None, never), ATTACKS, model).end(model)
    assert found.membership != NOT_EVALUATED
    assert {"zlib", "reference"} <= found.membership.attacks.keys()
    assert found.membership.attacks["loss"].auc == 1, "it knows the forget set by heart"
    assert found.membership.attacks["reference"].auc == 0.5


def test_answers_of_a_classifier_are_compared_with_the_retrained_one() -> None:
    torch.manual_seed(0)
    models = [Classifier(torch.nn.Linear(4, 3)) for _ in range(2)]
    found, _ = Examination.begin(models[0], Asked(examples(1)), ATTACKS, models[1]).end(models[0])
    assert found.oracle != NOT_EVALUATED and found.oracle.predictions != NOT_EVALUATED
    rows = []
    for points in examples(1).inputs.tolist():
        each = [
            [
                sum(w * x for w, x in zip(row, points, strict=True)) + b
                for row, b in zip(m.module.weight.tolist(), m.module.bias.tolist(), strict=True)
            ]
            for m in models
        ]
        rows.append([[math.exp(v) / sum(map(math.exp, out)) for v in out] for out in each])
    expected = [
        (
            sum(abs(p - q) for p, q in zip(now, never, strict=True)) / 2,
            sum(q * math.log(q / p) for p, q in zip(now, never, strict=True)),
            now.index(max(now)) == never.index(max(never)),
        )
        for now, never in rows
    ]
    far = found.oracle.predictions
    columns = zip(*expected, strict=True)
    for value, own in zip((far.total_variation, far.kl, far.same), columns, strict=True):
        assert value == pytest.approx(sum(own) / len(own), rel=1e-5)
    assert 0 < far.same < 1 and far.kl > 0

    narrow = Classifier(torch.nn.Linear(4, 2))
    two = replace(examples(1), labels=examples(1).labels % 2)
    begun = Examination.begin(models[0], Asked(two), ATTACKS, narrow)
    other, lacking = begun.end(models[0])
    assert other.oracle == NOT_EVALUATED and "another number of classes" in " ".join(lacking)
