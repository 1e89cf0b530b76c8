"""The commands `sisa unlearn ...`: one a method, and their list."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sisa.approximate.catalogue import Card, cards
from sisa.cli import _Call, _confirm, common, main, on_workers
from sisa.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from data_index.envelope import Signer
    from sisa.approximate.request import Request
    from sisa.results import Result

F = TypeVar("F", bound=Callable[..., Any])

KEY_BYTES = 16  # a digest under a shorter key is no better than a plain one


class Methods(click.Group):
    """The list, and a command for each method, made when it is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Names of all methods, after the list."""
        return [*super().list_commands(context), *(card.name for card in cards())]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of a method."""
        found = {card.name: card for card in cards()}.get(name)
        return super().get_command(context, name) if found is None else _command(found)


@main.group(
    cls=Methods,
    epilog="Example: sisa unlearn npo --forget f.jsonl --retain r.jsonl --model base --out new",
)
def unlearn() -> None:
    """Make a model forget approximately: with evidence, and without a guarantee.

    For models that were trained without shards or cannot be rebuilt; it works without a workspace.
    What is written is a model folder with an approximate statement, which is no certificate.
    """


@unlearn.command("list", epilog="Example: sisa unlearn list --output json")
@common
def listing(call: _Call) -> Result:
    """The methods, what each needs and what it costs."""
    from sisa.results import MethodShown, MethodsListed

    _own_settings(call, with_settings=False)
    return MethodsListed(
        methods=tuple(
            MethodShown(
                name=c.name,
                kind=c.kind,
                needs=tuple(c.needs.values()),
                cost=c.cost,
                defaults=dict(c.defaults),
                source=c.source,
            )
            for c in cards()
        )
    )


def _paths(name: str, text: str, **more: Any) -> Callable[[F], F]:
    return click.option(name, type=click.Path(path_type=Path), help=text, **more)


OPTIONS: tuple[Callable[[Any], Any], ...] = (
    _paths("--retain", "What to keep."),
    _paths(
        "--alternatives",
        "What to say instead, one for each item to forget and in their order.",
    ),
    _paths(
        "--holdout",
        "Items of the same kind that no model ever saw: membership is asked beside them.",
    ),
    _paths(
        "--wrong",
        "Items to forget with a wrong answer, in their order: the truth ratio is asked beside "
        "them; several times for several.",
        multiple=True,
    ),
    _paths("--paraphrased", "Items to forget with the right answer in other words."),
    _paths("--retrained", "Folder of a model that never saw what is to be forgotten."),
    _paths("--log", "Folder of the update log of the model's training."),
    _paths("--original", "Folder of the model as it was before."),
    _paths("--importance", "File of the importance over all data, measured before."),
    _paths("--adapter", "Folder of an adapter; several times for several.", multiple=True),
    _paths("--model", "Its folder.", required=True),
    _paths("--out", "A folder that is not there.", required=True),
    click.option(
        "--evidence/--no-evidence",
        default=True,
        show_default=True,
        help="Measure and attack the model before its statement is made.",
    ),
    click.option(
        "--sweep",
        "tries",
        type=click.IntRange(1),
        help="Search for settings with so many tries; those of --set stay.",
    ),
    _paths("--signing-key", "Ed25519 private key in PEM that signs the statement."),
    _paths(
        "--digest-key",
        "File of random bytes; without it, whoever guesses a data file can compare digests.",
    ),
    click.option(
        "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow, which the run is logged to."
    ),
    click.option("--experiment", default="sisa-approximate", show_default=True),
    click.option("--dry-run", is_flag=True, help="Say what would be done and change nothing."),
    click.option("--yes", is_flag=True, help="Do not ask."),
)
"""What all methods take, in the order of the help."""

FORGET = (
    "What to forget: Parquet, CSV or JSON lines with text, or question and answer; of a "
    "classifier Parquet or CSV with its columns."
)


def _asking(command: F) -> F:
    """Give a command the options of all methods."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def _request(call: _Call, method: str, yes: bool, dry_run: bool, fields: dict[str, Any]) -> Request:
    """What was asked for, once it is agreed to."""
    _own_settings(call)
    if not dry_run and not yes:
        _confirm(
            f"Make {fields['out']} from {fields['model']} with {method}?", "This trains a model."
        )
    key, salt = fields.pop("signing_key"), fields.pop("digest_key")
    signer = None if key is None else _signer(key)
    digest_key = None if salt is None else _digest_key(salt)
    tries, adapters = fields.pop("tries") or 0, fields.pop("adapter")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when it is imported
    from sisa.approximate.request import Request

    return Request(
        method=method,
        settings=call.settings,
        signer=signer,
        digest_key=digest_key,
        tries=tries,
        adapters=adapters,
        **fields,
    )


def _command(card: Card) -> click.Command:
    """The command of one method."""
    files = {
        "retain": " --retain r.jsonl",
        "statistics": " --retain r.jsonl",
        "alternatives": " --alternatives a.jsonl",
        "log": " --log updates",
        "original": " --original old",
        "adapters": " --adapter one --adapter two",
    }
    given = "".join(option for need, option in files.items() if need in card.needs)
    settings = ", ".join(f"{name}={value}" for name, value in card.defaults.items())

    @click.command(
        card.name,
        help=f"Unlearn with {card.name} ({card.source}).\n\n"
        f"Needs: {'; '.join(card.needs.values()) or 'nothing more'}. Costs: {card.cost}. "
        f"Settings: {settings or 'none of its own'}.",
        short_help=f"Needs {'; '.join(card.needs.values()) or 'nothing more'}.",
        epilog=f"Example: sisa unlearn {card.name} --forget f.jsonl{given} --model base --out new",
    )
    @_paths("--forget", FORGET, required=True)
    @_asking
    @common
    def method(call: _Call, dry_run: bool, yes: bool, **fields: Any) -> Result:
        request = _request(call, card.name, yes, dry_run, fields)
        from sisa.approximate.unlearn import run

        return run(request, dry_run=dry_run, report=_Steps().show, several=on_workers)

    return method


@unlearn.command(
    "sequence",
    epilog="Example: sisa unlearn sequence npo --forget a.jsonl --forget b.jsonl --retain r.jsonl "
    "--model base --out all",
)
@click.argument("method", type=click.Choice([card.name for card in cards()]))
@_paths(
    "--forget", f"{FORGET} Once for each request, in their order.", multiple=True, required=True
)
@_asking
@common
def sequence(
    call: _Call, method: str, forget: tuple[Path, ...], dry_run: bool, yes: bool, **fields: Any
) -> Result:
    """Requests one after the other, each from the model that the one before it left.

    The folder --out gets a model folder for each request, 01, 02 and so on. A sequence that was
    interrupted goes on when it is called again in the same way.
    """
    request = _request(call, method, yes, dry_run, {**fields, "forget": forget[0]})
    from sisa.approximate.sequence import run

    return run(request, forget, dry_run=dry_run, report=_Steps().show, several=on_workers)


class _Steps:
    """Progress on stderr, a line a second at most."""

    def __init__(self) -> None:
        self._shown = 0.0

    def show(self, metrics: Mapping[str, float], step: int) -> None:
        """Tell of a step."""
        if time.monotonic() - self._shown > 1:
            self._shown = time.monotonic()
            told = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            click.echo(f"step {step}: {told}", err=True)


def _own_settings(call: _Call, with_settings: bool = True) -> None:
    if call.folder is not None:
        raise UsageError("`sisa unlearn` works without a workspace.", "Leave -C out.")
    if call.settings and not with_settings:
        raise UsageError("The list has no settings.", "Leave --set out.")


def _signer(path: Path) -> Signer:
    from data_index import envelope

    return envelope.read_private(_bytes(path), path.name)


def _digest_key(path: Path) -> bytes:
    found = _bytes(path)
    if len(found) < KEY_BYTES:
        raise UsageError(
            f"{path.name} is shorter than {KEY_BYTES} bytes.", "Fill it with random bytes."
        )
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFoundError(f"{path} is no file.") from None
