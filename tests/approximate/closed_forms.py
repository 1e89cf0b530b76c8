"""The loss of every method that the loop trains, in plain loops over padded logits.

Written from the papers and their authors' code, without anything of `sisa.approximate`. The values
of settings that stand here are those that a method is to have unless it is configured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

Floats = list[float]


class Row(NamedTuple):
    """A labelled position: logits of the model and of the reference, and the label."""

    z: Floats
    q: Floats
    y: int


class Side(NamedTuple):
    """Items, each a list of rows; and hidden states at all of its positions, by both models."""

    rows: list[list[Row]]
    hidden: list[list[Floats]]
    was: list[list[Floats]]


class World(NamedTuple):
    """All that terms look at; the control vector has length 1."""

    forget: Side
    retain: Side
    alternatives: Side
    neighbours: Side
    control: Floats


class Loss(NamedTuple):
    """Both sides of a loss, None for a side without terms; and a factor of the second."""

    forget: float
    retain: float | None = None
    multiplier: float = 1.0


def log_softmax(z: Floats, degree: float = 1.0) -> Floats:
    top = max(z) / degree
    total = top + math.log(sum(math.exp(x / degree - top) for x in z))
    return [x / degree - total for x in z]


def nll(row: Row, degree: float = 1.0) -> float:
    return -log_softmax(row.z, degree)[row.y]


def mean(values: Floats) -> float:
    return sum(values) / len(values)


def over_rows(side: Side, value: Callable[[Row], float]) -> float:
    """One mean over the rows of all items, not a mean of means."""
    return mean([value(row) for item in side.rows for row in item])


def ce(side: Side) -> float:
    return over_rows(side, nll)


def divergence(side: Side, degree: float = 1.0) -> float:
    def value(row: Row) -> float:
        log_p, log_q = log_softmax(row.z, degree), log_softmax(row.q, degree)
        return sum(math.exp(b) * (b - a) for a, b in zip(log_p, log_q, strict=True))

    return degree**2 * over_rows(side, value)


def retained(world: World, kind: str) -> float:
    return ce(world.retain) if kind == "nll" else divergence(world.retain)


def softened(score: float, beta: float) -> float:
    """-(2 / beta) log sigmoid(beta score)."""
    return 2 / beta * math.log1p(math.exp(-beta * score))


def ascent(world: World) -> Loss:
    return Loss(-ce(world.forget))


def difference(world: World, retain: str = "nll") -> Loss:
    return Loss(-ce(world.forget), retained(world, retain))


def relabelled(world: World, retain: str = "nll") -> Loss:
    return Loss(ce(world.alternatives), retained(world, retain))


def above(item: list[Row]) -> float:
    """How much less likely an item is to the model than to the reference, in nats."""
    return sum(nll(row) + log_softmax(row.q)[row.y] for row in item)


def dpo(world: World, beta: float = 0.1, retain: str = "nll") -> Loss:
    pairs = zip(world.alternatives.rows, world.forget.rows, strict=True)
    losses = [softened(above(lose) - above(win), beta) for win, lose in pairs if win and lose]
    return Loss(mean(losses), retained(world, retain))


def npo(world: World, beta: float = 0.1, retain: str = "nll") -> Loss:
    losses = [softened(above(item), beta) for item in world.forget.rows if item]
    return Loss(mean(losses), retained(world, retain))


def simnpo(world: World, beta: float = 4.5, delta: float = 0.0, retain: str = "nll") -> Loss:
    items = [item for item in world.forget.rows if item]
    losses = [softened(mean([nll(row) for row in item]) - delta, beta) for item in items]
    return Loss(mean(losses), retained(world, retain))


def wga(world: World, beta: float = 1.0, retain: str = "nll") -> Loss:
    def value(row: Row) -> float:
        return -(math.exp(-nll(row)) ** beta) * nll(row)

    return Loss(over_rows(world.forget, value), retained(world, retain))


def satimp(world: World, beta1: float = 5.0, beta2: float = 1.0, retain: str = "nll") -> Loss:
    def value(row: Row) -> float:
        p = math.exp(-nll(row))
        return -(p**beta1) * (1 - p) ** beta2 * nll(row)

    return Loss(over_rows(world.forget, value), retained(world, retain))


def selection(world: World, fraction: float = 0.8, retain: str = "nll") -> Loss:
    chosen: Floats = []
    for item in world.forget.rows:
        best = sorted(nll(row) for row in item)
        chosen += best[: max(1, math.floor(fraction * len(best)))]
    return Loss(-mean(chosen), retained(world, retain))


def temperature(world: World, degree: float = 2.0, retain: str = "nll") -> Loss:
    loss = -over_rows(world.forget, lambda row: nll(row, degree))
    return Loss(loss, retained(world, retain))


def undial(world: World, beta: float = 10.0, retain: str = "nll") -> Loss:
    def value(row: Row) -> float:
        target = log_softmax([q - beta * (k == row.y) for k, q in enumerate(row.q)])
        return -sum(math.exp(t) * a for t, a in zip(target, log_softmax(row.z), strict=True))

    return Loss(over_rows(world.forget, value), retained(world, retain))


def ce_u(world: World, skip: int = 1) -> Loss:
    def value(row: Row) -> float:
        others = [k for k in range(len(row.z)) if k != row.y]
        target, log_p = log_softmax([row.z[k] for k in others]), log_softmax(row.z)
        return -sum(math.exp(t) * log_p[k] for k, t in zip(others, target, strict=True))

    items = [item for item in world.forget.rows if item]
    left = [row for item in items for row in item[min(skip, len(item) - 1) :]]
    return Loss(mean([value(row) for row in left]))


def pdu(world: World, first: float = 50.0) -> Loss:
    loss = over_rows(world.forget, lambda row: (max(row.z) - mean(row.z)) ** 2)
    return Loss(loss, ce(world.retain), first)


def rmu(world: World, coefficient: float = 6.5) -> Loss:
    def apart(here: Floats, aim: Floats) -> float:
        return mean([(h - a) ** 2 for h, a in zip(here, aim, strict=True)])

    aim = [coefficient * u for u in world.control]
    forgotten = [mean([apart(h, aim) for h in item]) for item in world.forget.hidden]
    both = zip(world.retain.hidden, world.retain.was, strict=True)
    kept = [mean([apart(*pair) for pair in zip(*item, strict=True)]) for item in both]
    return Loss(mean(forgotten), mean(kept))


def scrub(world: World, degree: float = 2.0, ce: float = 1.0, kl: float = 0.5) -> Loss:
    retain = ce * over_rows(world.retain, nll) + kl * divergence(world.retain, degree)
    return Loss(-divergence(world.forget, degree), retain)


def icu(world: World, ce: float = 0.5, kl: float = 1.0) -> Loss:
    near = world.neighbours
    return Loss(-over_rows(world.forget, nll), ce * over_rows(near, nll) + kl * divergence(near))


def eul(world: World, kl: float = 0.8, ce: float = 1.0, language: float = 0.2) -> Loss:
    forgotten = -divergence(world.forget) - language * over_rows(world.forget, nll)
    return Loss(forgotten, kl * divergence(world.retain) + ce * over_rows(world.retain, nll))


@dataclass(frozen=True)
class Formula:
    """What a method is to be.

    Attributes:
        loss: Of a world and settings.
        gamma: Weight of the forget side.
        alpha: Weight of the retain side; there is none where it is 0.
        changed: Other settings to try, of those that the loss has.
        turns: Whether each side has steps of its own, and the order of their first ones.
    """

    loss: Callable[..., Loss]
    gamma: float = 1.0
    alpha: float = 1.0
    changed: Mapping[str, float | str] = field(default_factory=dict)
    turns: tuple[str, ...] = ()


KL: Mapping[str, str] = {"retain": "kl"}

FORMULAS: dict[str, Formula] = {
    "gradient-ascent": Formula(ascent),
    "gradient-difference": Formula(difference, changed=KL),
    "label-flip": Formula(relabelled, changed=KL),
    "idk": Formula(relabelled, changed=KL),
    "dpo": Formula(dpo, changed={"beta": 0.03, **KL}),
    "npo": Formula(npo, changed={"beta": 0.03, **KL}),
    "simnpo": Formula(simnpo, gamma=0.125, changed={"beta": 0.7, "delta": 0.3, **KL}),
    "wga": Formula(wga, changed={"beta": 0.4, **KL}),
    "satimp": Formula(satimp, alpha=0.1, changed={"beta1": 0.6, "beta2": 2.0, **KL}),
    "loss-selection": Formula(selection, changed={"fraction": 0.3, **KL}),
    "temperature": Formula(temperature, changed={"degree": 0.8, **KL}),
    "undial": Formula(undial, alpha=0.0, changed={"beta": 3.0, **KL}),
    "ce-u": Formula(ce_u, changed={"skip": 2}),
    "pdu": Formula(pdu, changed={"first": 3.0}),
    "rmu": Formula(rmu, alpha=1200.0, changed={"coefficient": 2.0}),
    "scrub": Formula(
        scrub, changed={"degree": 3.0, "ce": 0.3, "kl": 0.9}, turns=("forget", "retain")
    ),
    "icu": Formula(icu, changed={"ce": 0.3, "kl": 0.9}),
    "eul": Formula(
        eul, changed={"kl": 0.3, "ce": 0.6, "language": 0.7}, turns=("retain", "forget")
    ),
}
