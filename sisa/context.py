"""What the parts of the system are handed: one workspace, opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from data_index.dataset import DataSet
from data_index.keys import Keyring
from data_index.ledger import GenerationEntry, Ledger
from data_index.schema import Columns
from data_index.storage import FileRef, Store
from data_index.tombstones import Epochs
from sisa import learners
from sisa.build import Progress
from sisa.config import Config
from sisa.errors import ConfigurationError, ExactnessError, IncompleteError
from sisa.executor import Executor
from sisa.generation import Generation
from sisa.mirror_purge import MirrorPurge
from sisa.signing_keys import SigningKeys

T = TypeVar("T")


@dataclass(frozen=True)
class Reporter:
    """Where progress and warnings go; by default nowhere."""

    stage: Progress = lambda record, stages: None
    rows: Callable[[int], None] = lambda rows: None
    warn: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Context:
    """One opened workspace.

    Attributes:
        folder: The workspace.
        config: Its configuration.
        ring: Subkeys of its secret.
        signing: Its signing keys.
        store: Its store.
        ledger: Its ledger.
        make_executor: Makes the executor that the configuration names.
        report: Where progress goes.
        published: Called after each publication.
        purge_mirror: Has retired generations destroyed in the mirror, or raises BlockedError.
    """

    folder: Path
    config: Config
    ring: Keyring
    signing: SigningKeys
    store: Store
    ledger: Ledger
    make_executor: Callable[[], Executor]
    report: Reporter
    published: Callable[[], None] = lambda: None
    purge_mirror: Callable[[], MirrorPurge] = MirrorPurge

    @cached_property
    def executor(self) -> Executor:
        """Where shards are trained; kept until `close`."""
        return self.make_executor()

    def close(self) -> None:
        """Give back workers and the ledger's connections."""
        if "executor" in self.__dict__:
            self.executor.close()
            del self.__dict__["executor"]
        self.ledger.close()

    @property
    def epochs(self) -> Epochs:
        """The live tombstone epochs, read anew when they have changed.

        Raises:
            ExactnessError: The key of one is missing.
            ConfigurationError: The workspace secret is not the one they were wrapped under.
        """
        numbers = self.ledger.live_epochs()
        known: Epochs | None = self.__dict__.get("_epochs")
        if known is None or known.numbers != numbers:
            known = Epochs.open(self.store, self.ring, numbers)
            self.__dict__["_epochs"] = known
        return known

    @cached_property
    def columns(self) -> Columns:
        """What the recipe declares of the sources."""
        return self.config.recipe.data.columns()

    @property
    def import_paths(self) -> tuple[str, ...]:
        """Where user modules are found."""
        return (str(self.folder),)

    @property
    def training(self) -> str:
        """The training digest of the recipe and of the learner's code as it is now."""
        self.find_user_modules()
        factory = self.config.recipe.learner.factory
        return self.config.recipe.training_digest(learners.code_digest(factory))

    def find_user_modules(self) -> None:
        """Let modules that lie beside sisa.yaml be imported, before others of their name."""
        learners.find_in(self.import_paths)

    def steady(self, read: Callable[[], T]) -> T:
        """Read what the pointers name; if it was swept because they moved, read again.

        Raises:
            ExactnessError: Something is missing or damaged that the pointers still name.
        """
        while True:
            before = self.ledger.moment()
            try:
                return read()
            except ExactnessError:
                now = self.ledger.moment()
                if (now.dataset, now.generation) == (before.dataset, before.generation):
                    raise

    def dataset(self) -> DataSet:
        """The current data set; an empty one before the first ingest.

        Raises:
            ConfigurationError: Data or partition of the recipe were changed after an ingest.
        """
        return self.load_dataset(self.ledger.dataset())

    def load_dataset(self, ref: FileRef | None) -> DataSet:
        """The data set of a manifest; an empty one for none. Raises as `dataset` does."""
        if ref is None:
            return DataSet(self.config.recipe.layout_digest())
        found = DataSet.load(self.store, ref)
        self._require_layout(found.layout)
        return found

    def _require_layout(self, layout: str) -> None:
        if self.config.recipe.layout_digest() != layout:
            raise ConfigurationError(
                "recipe.data or recipe.partition was changed after the first ingest.",
                "Change it back, or ingest into a new workspace.",
            )

    def current(self) -> tuple[GenerationEntry, Generation] | None:
        """The current generation, None before the first training.

        Raises:
            ConfigurationError: Data or partition of the recipe were changed after an ingest.
        """
        entry = self.ledger.generation()
        if entry is None or entry.manifest is None:
            return None
        generation = Generation.load(self.store, entry.manifest)
        self._require_layout(generation.recipe.layout_digest())
        return entry, generation

    def served(self) -> tuple[GenerationEntry, Generation]:
        """The current generation.

        Raises:
            IncompleteError: Nothing has been trained yet.
        """
        found = self.current()
        if found is None:
            raise IncompleteError("Nothing has been trained yet.", "Run `sisa train`.")
        return found

    def require_trained_recipe(self, current: Generation) -> None:
        """Refuse to erase under another recipe than the current generation's.

        Raises:
            ConfigurationError: Learner, training or its code were changed since.
        """
        if current.training != self.training:
            raise ConfigurationError(
                "The learner, the training section or the learner's code was changed since the "
                "current generation was trained.",
                "Run `sisa train` first, or change it back.",
            )
