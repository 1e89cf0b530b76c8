"""A model examined before and after: all evidence of what a method did to it.

What is read from answers is in `findings.py`, the three attacks are in `attacked.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from sisa.approximate.asked import Asked, Known, known
from sisa.approximate.attacked import Attacked, Seen, attack, membership
from sisa.approximate.evidence import (
    NOT_EVALUATED,
    Continuation,
    Evidence,
    Membership,
    NotEvaluated,
    Oracle,
    Truth,
    tried,
)
from sisa.approximate.findings import continuation, memorisation, oracle, truth, utility_of
from sisa.approximate.models import Subject
from sisa.approximate.targets import Attacks, Held
from sisa.errors import SisaError

Part = TypeVar("Part")


@dataclass(frozen=True)
class Examination:
    """Of one model, begun before a method changes it and ended afterwards.

    Attributes:
        asked: The items.
        before: What the model said of them before.
        attacks: How it is attacked afterwards.
        retrained: What a model says that never saw the items to forget, if there is one.
    """

    asked: Asked
    before: Known
    attacks: Attacks
    retrained: Known | None = None

    @classmethod
    def begin(
        cls, subject: Subject, asked: Asked, attacks: Attacks, retrained: Subject | None = None
    ) -> Examination:
        """Ask the model as it is, and the retrained one.

        Raises:
            SisaError: One of them has collapsed already.
        """
        sizes, never = (attacks.items, attacks.chunk), None
        if retrained is not None:
            never = known(retrained, replace(asked, continued=None), *sizes)
        return cls(asked, known(subject, asked, *sizes), attacks, never)

    def end(
        self, subject: Subject, after: Known | None = None, made: Attacked | None = None
    ) -> tuple[Evidence, tuple[str, ...]]:
        """Measure all that can be measured of the model as it is now; it is not changed.

        A part that cannot be measured is "not evaluated", and a sentence tells why.

        Args:
            subject: The model.
            after: What it says of the items, if it was asked already.
            made: What attacks on it came to, if they were made already.

        Returns:
            The evidence, and sentences on what is missing.
        """
        asked, before, attacks = self.asked, self.before, self.attacks
        lacking: list[str] = []

        def part(name: str, measure: Callable[[], Part | SisaError]) -> Part | NotEvaluated:
            if not isinstance(found := tried(measure), SisaError):
                return found
            lacking.append(f"{name} was not evaluated. {found.message}")
            return NOT_EVALUATED

        said = part("Anything", lambda: self._known(subject)) if after is None else after
        if isinstance(said, str):
            return Evidence(), tuple(lacking)
        now: Known = said
        if made is None:
            made = attack(Held(subject, attacks), asked, before.forget, attacks)
        found = Evidence(
            memorisation=part("Memorisation", lambda: memorisation(before.forget, now.forget)),
            continuation=part("What it says by itself", lambda: self._continuation(now)),
            truth=part("The truth ratio", lambda: self._truth(now)),
            utility=part("Utility", lambda: utility_of(before, now)),
            oracle=part("The comparison", lambda: self._oracle(now)),
            membership=part("Membership", lambda: self._membership(subject, now, made)),
            relearning=part("Relearning", lambda: made.relearning),
            quantisation=part("Quantisation", lambda: made.quantisation),
        )
        return found, tuple(lacking)

    def _known(self, subject: Subject) -> Known:
        return known(subject, self.asked, self.attacks.items, self.attacks.chunk)

    def _oracle(self, after: Known) -> Oracle | NotEvaluated:
        if self.retrained is None:
            return NOT_EVALUATED
        return oracle(after, self.retrained)

    def _continuation(self, after: Known) -> Continuation | NotEvaluated:
        if self.asked.continued is None:
            return NOT_EVALUATED
        return continuation(self.asked.continued, self.before, after)

    def _truth(self, after: Known) -> Truth | NotEvaluated:
        if not self.asked.wrong:
            return NOT_EVALUATED
        return truth(self.asked, self.before, after, self.retrained)

    def _membership(self, subject: Subject, after: Known, made: Attacked) -> Membership:
        if isinstance(made.gradients, SisaError):
            raise made.gradients
        asked, never = self.asked, self.retrained
        assert asked.holdout is not None and after.holdout is not None
        of_forget, of_holdout = (None, None) if never is None else (never.forget, never.holdout)
        return membership(
            subject,
            Seen(asked.forget, after.forget, of_forget, made.gradients[0]),
            Seen(asked.holdout, after.holdout, of_holdout, made.gradients[1]),
        )
