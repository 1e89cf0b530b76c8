"""The command line: thin commands, each calling one method of the Workspace."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sisa import __version__
from sisa.errors import DataError, NotFoundError, SisaError, UsageError

if TYPE_CHECKING:
    from sisa.context import Reporter
    from sisa.results import Result
    from sisa.workspace import Workspace

Command = Callable[..., Any]

EPILOG = """
Exit codes: 0 done; 1 failure; 2 usage; 3 configuration or doctor findings; 4 exactness disproved;
5 workspace or file not found; 6 incomplete or not comparable; 75 try again; 130 interrupted.
"""


class Group(click.Group):
    """Turns usage errors into the same JSON object as all other errors."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line and end the process with its exit code."""
        extra["standalone_mode"] = False
        style = "json" if "json" in _values(sys.argv, "--output") else "text"
        try:
            code = super().main(*args, **extra)
        except click.exceptions.Abort:
            code = 130
        except click.UsageError as error:
            if style == "text":
                error.show()
            else:
                _fail(UsageError(error.format_message()), style)
            code = 2
        except click.ClickException as error:
            code = _fail(SisaError(error.format_message()), style)
        sys.exit(code if isinstance(code, int) else 0)


def _values(arguments: Sequence[str], option: str) -> list[str]:
    follow = [b for a, b in pairwise(arguments) if a == option]
    return follow + [a.partition("=")[2] for a in arguments if a.startswith(f"{option}=")]


@click.group(cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-C", "folder", type=click.Path(path_type=Path), help="The workspace, exactly.")
@click.version_option(__version__, prog_name="sisa")
@click.pass_context
def main(context: click.Context, folder: Path | None) -> None:
    """Train models that can forget: exactly, provably, and without starting over."""
    context.obj = folder


def common(command: Command) -> Command:
    """The options of every command, and the one place where errors become exit codes."""

    @click.option(
        "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
    )
    @click.option(
        "--set", "settings", multiple=True, metavar="A.B=VALUE", help="Overrule a setting."
    )
    @click.option("-v", "--verbose", is_flag=True, help="Show a traceback with an error.")
    @functools.wraps(command)
    def run(
        context: click.Context,
        output: str,
        settings: tuple[str, ...],
        verbose: bool,
        **options: Any,
    ) -> int:
        from sisa.output import show

        try:
            result: Result = command(_Call(context.obj, settings, output), **options)
        except SisaError as error:
            if verbose:
                raise
            return _fail(error, output)
        except KeyboardInterrupt:
            return 130
        except OSError as error:
            if verbose:
                raise
            named = f": {error.filename}" if error.filename else ""
            return _fail(SisaError(f"{error.strerror or error}{named}."), output)
        show(result, output)
        return result.exit_code

    return click.pass_context(run)


def _fail(error: SisaError, style: str) -> int:
    from sisa.output import show_error

    show_error(error, style)
    return error.exit_code


class _Call:
    """One call of a command: where the workspace is, what overrules its settings, how it prints."""

    def __init__(self, folder: Path | None, settings: tuple[str, ...], style: str) -> None:
        self.folder, self.settings, self.style = folder, settings, style

    def open(self, restored: bool = False, report: Reporter | None = None) -> Workspace:
        """Open the workspace that the call is about."""
        from sisa.output import Progress
        from sisa.workspace import Workspace

        return Workspace.open(
            self.folder or Path.cwd(),
            self.settings,
            report or Progress().reporter(),
            exact=self.folder is not None,
            restored=restored,
        )


def _listed(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Names given once each or separated by commas."""
    return tuple(name for part in value for name in part.split(",") if name)


@main.command(epilog="Example: sisa init shop --data rows.parquet --record-id id --target bought")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--data", required=True, multiple=True, type=click.Path(path_type=Path))
@click.option("--record-id", required=True, help="Column of record ids.")
@click.option("--subject-id", help="Column of data subjects; default: each record its own.")
@click.option("--target", required=True, help="Column to predict.")
@click.option("--task", type=click.Choice(["classification", "regression"]))
@click.option("--features", multiple=True, callback=_listed, help="Columns to learn from.")
@click.option("--drop", multiple=True, callback=_listed, help="Columns to leave out.")
@click.option("--shards", type=int)
@click.option("--slices", type=int)
@click.option("--learner", help="cnn, logistic, mlp, or module:factory.")
@click.option("--epochs", type=float)
@common
def init(call: _Call, directory: Path | None, data: tuple[Path, ...], **choices: Any) -> Result:
    """Make a workspace: look at the data and write sisa.yaml and the keys."""
    from sisa.workspace import Workspace

    return Workspace.init(directory or call.folder or Path.cwd(), data, call.settings, **choices)


@main.command(epilog="Example: sisa doctor --held-out test.parquet --output json")
@click.option(
    "--held-out",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file that should share no record and no subject with the store.",
)
@common
def doctor(call: _Call, held_out: tuple[Path, ...]) -> Result:
    """Find everything that would break the guarantee."""
    with call.open() as workspace:
        return workspace.doctor(held_out)


@main.command(epilog="Example: sisa ingest --append more.parquet")
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.option("--correct", is_flag=True, help="Replace stored rows that differ.")
@click.option("--append", is_flag=True, help="Put new records into a further slice, the last.")
@common
def ingest(call: _Call, sources: tuple[Path, ...], correct: bool, append: bool) -> Result:
    """Take Parquet, CSV and Arrow files and folders in."""
    with call.open() as workspace:
        return workspace.ingest(*sources, correct=correct, append=append)


@main.command(epilog="Example: sisa train --set runtime.executor.kind=process")
@common
def train(call: _Call) -> Result:
    """Train what is missing and publish the ensemble."""
    with call.open() as workspace:
        return workspace.train()


@main.command(epilog="Example: sisa evaluate test.parquet")
@click.argument("file", type=click.Path(path_type=Path))
@common
def evaluate(call: _Call, file: Path) -> Result:
    """Held-out metrics of the current generation."""
    with call.open() as workspace:
        return workspace.evaluate(file)


@main.command(epilog="Example: sisa predict new.parquet --out predictions.parquet")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help=".parquet or .csv")
@common
def predict(call: _Call, file: Path, out: Path) -> Result:
    """Predict the rows of a file."""
    with call.open() as workspace:
        return workspace.predict_file(file, out)


@main.command(epilog="Example: sisa forget --subject alice --subject bob --yes")
@click.option("--subject", "subjects", multiple=True, help="Id of a data subject.")
@click.option("--record", "records", multiple=True, help="Id of a record.")
@click.option("--file", "listed", help="Subject ids, one a line; - for stdin.")
@click.option("--no-wait", is_flag=True, help="Accept and roll back; `sisa work` does the rest.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def forget(
    call: _Call,
    subjects: tuple[str, ...],
    records: tuple[str, ...],
    listed: str | None,
    no_wait: bool,
    dry_run: bool,
    yes: bool,
) -> Result:
    """Erase data subjects or single records."""
    named = [*subjects, *_lines(listed)]
    if not dry_run and not yes:
        _confirm(f"Erase {len(named)} subjects and {len(records)} records for good?")
    with call.open() as workspace:
        return workspace.forget(named, records, wait=not no_wait, dry_run=dry_run)


def _lines(name: str | None) -> list[str]:
    """The lines of a file or of standard input that are not empty."""
    if name is None:
        return []
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"{name} does not exist.") from None
    except UnicodeDecodeError:
        raise DataError(f"{name} is no UTF-8 text.", "Write one id a line.") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _confirm(question: str, why: str = "This erases data for good.") -> None:
    if not sys.stdin.isatty():
        raise UsageError(why, "Add --yes, or --dry-run to see what it does.")
    click.confirm(question, abort=True, err=True)


@main.command(epilog="Example: sisa work --every 10m --output json")
@click.option("--every", metavar="TIME", help="Go on in rounds, such as 10m: s, m, h or d.")
@click.option("--for", "duration", metavar="TIME", help="Begin no round after this time.")
@click.option("--times", type=click.IntRange(min=1), help="Make so many rounds.")
@common
def work(call: _Call, every: str | None, duration: str | None, times: int | None) -> Result:
    """Finish what is accepted, and whatever a crash or an older copy left undone.

    With --every, requests wait for each other until their window closes (runtime.erasure.max_wait).
    """
    if every is not None:
        return _rounds(call, every, duration, times)
    if duration is not None or times is not None:
        raise UsageError("--for and --times are for rounds.", "Add --every.")
    with call.open(restored=True) as workspace:
        return workspace.work()


def _rounds(call: _Call, every: str, duration: str | None, times: int | None) -> Result:
    from sisa import rounds
    from sisa.output import Progress, Rounds

    schedule = rounds.Schedule.parse(every, duration, times)
    stop, report, lines = rounds.Stop(), Progress().reporter(), Rounds(call.style)
    inside = stop.between_stages(report)
    with rounds.signals(stop):
        opened = functools.partial(call.open, restored=True, report=inside)
        return rounds.run(opened, schedule, stop, lines.show, report.warn)


@main.command(epilog="Example: sisa verify --sample 2")
@click.option("--shard", type=int, help="Replay this shard only.")
@click.option("--sample", type=click.IntRange(min=1), help="Replay so many shards, at random.")
@click.option("--no-replay", is_flag=True, help="Check what is stored, train nothing.")
@click.option("--residue", is_flag=True, help="Search everywhere for what erasures must not leave.")
@click.option("--subject", "subjects", multiple=True, help="With --residue: an erased subject.")
@click.option("--record", "records", multiple=True, help="With --residue: an erased record.")
@common
def verify(
    call: _Call,
    shard: int | None,
    sample: int | None,
    no_replay: bool,
    residue: bool,
    subjects: tuple[str, ...],
    records: tuple[str, ...],
) -> Result:
    """Show that the ensemble is what training on the stored data gives."""
    with call.open() as workspace:
        return workspace.verify(shard, sample, not no_replay, residue, subjects, records)


@main.command(epilog="Example: sisa report --out report.html")
@click.option("--out", type=click.Path(path_type=Path), help="The page; optional with JSON.")
@common
def report(call: _Call, out: Path | None) -> Result:
    """Everything an auditor wants to know, on one HTML page."""
    if out is None and call.style == "text":
        raise UsageError("No file is named for the page.", "Add --out, or --output json.")
    with call.open() as workspace:
        return workspace.report(out)


@main.command(epilog="Example: sisa lineage --subject alice")
@click.option("--subject", help="Id of a data subject.")
@click.option("--record", help="Id of a record.")
@common
def lineage(call: _Call, subject: str | None, record: str | None) -> Result:
    """From a subject or record down to models and certificates."""
    with call.open() as workspace:
        return workspace.lineage(subject, record)


@main.group(epilog="Example: sisa certificate verify store/certificates/0000000001.json")
def certificate() -> None:
    """Show, list and verify the certificates of erasures."""


@certificate.command("show", epilog="Example: sisa certificate show 0000000001.json")
@click.argument("name", metavar="FILE|REQUEST_ID")
@common
def certificate_show(call: _Call, name: str) -> Result:
    """What a certificate states, in readable words."""
    from sisa import certificate_check

    if Path(name).exists() or not name.startswith("er_"):
        return certificate_check.show(Path(name))
    with call.open() as workspace:
        return workspace.show_certificate(name)


@certificate.command("list", epilog="Example: sisa certificate list --output json")
@common
def certificate_list(call: _Call) -> Result:
    """The chain of certificates."""
    with call.open() as workspace:
        return workspace.certificates()


@certificate.command(
    "verify", epilog="Example: sisa certificate verify 0000000001.json --public-key signing.pub"
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--public-key",
    "public_keys",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Whose signature counts; then no workspace is needed, and only one named by -C is used.",
)
@common
def certificate_verify(call: _Call, file: Path, public_keys: tuple[Path, ...]) -> Result:
    """Check a certificate: offline with a public key, or against the workspace as well."""
    from sisa import certificate_check

    certificate_check.read_certificate(file)
    if public_keys and call.folder is None:
        return certificate_check.verify(file, certificate_check.public_keys(public_keys))
    try:
        opened = call.open()
    except NotFoundError:
        if call.folder is not None:
            raise
        raise UsageError(
            "There is neither a workspace nor a public key to check with.",
            "Name a public key with --public-key, or a workspace with `sisa -C`.",
        ) from None
    with opened as workspace:
        return workspace.verify_certificate(file, public_keys)


@main.group(epilog="Example: sisa keys rotate --signing")
def keys() -> None:
    """List and rotate keys."""


@keys.command("list", epilog="Example: sisa keys list")
@common
def keys_list(call: _Call) -> Result:
    """Signing keys by their id, and tombstone epochs."""
    with call.open() as workspace:
        return workspace.keys()


@keys.command("rotate", epilog="Example: sisa keys rotate --dry-run")
@click.option("--signing", is_flag=True, help="Make a new signing key, in place of an epoch.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def keys_rotate(call: _Call, signing: bool, dry_run: bool, yes: bool) -> Result:
    """Open a new tombstone epoch, and destroy those that no backup outlives."""
    if signing and dry_run:
        raise UsageError("--signing destroys nothing.", "Leave --dry-run out.")
    if not signing and not dry_run and not yes:
        _confirm("Destroy the keys of tombstone epochs that are over for good?")
    with call.open() as workspace:
        return workspace.rotate_signing_key() if signing else workspace.rotate_epochs(dry_run)


@main.command(epilog="Example: sisa plan --subject alice")
@click.option("--subject", "subjects", multiple=True, help="Id of a data subject.")
@click.option("--record", "records", multiple=True, help="Id of a record.")
@click.option("--rate", metavar="N/day", help="Requests to expect, in place of ids.")
@common
def plan(
    call: _Call, subjects: tuple[str, ...], records: tuple[str, ...], rate: str | None
) -> Result:
    """What an erasure will cost, and what waiting saves; or what a day of them will cost."""
    with call.open() as workspace:
        return workspace.plan(subjects, records, rate)


@main.command(epilog="Example: sisa status --output json")
@common
def status(call: _Call) -> Result:
    """The current generation and all requests."""
    with call.open() as workspace:
        return workspace.status()


@main.command(epilog="Example: sisa history")
@common
def history(call: _Call) -> Result:
    """All generations."""
    with call.open() as workspace:
        return workspace.history()


def on_workers(plan: Any, working: Path, report: Any) -> Any:
    """Carry an approximate plan out on several workers; Ray is loaded when that is asked for."""
    return importlib.import_module("cluster.fsdp").on_workers(plan, working, report)


from sisa import cli_request, cli_unlearn  # noqa: E402, F401  their commands join the group above
