"""Ray: address, authentication, temporary and spill folders, in one place."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import ray
from ray import exceptions
from tenacity import Retrying, retry_if_exception, stop_after_attempt

from sisa import ray_folders
from sisa.config import ExecutorSection
from sisa.determinism import cpus
from sisa.errors import BusyError, ConfigurationError, WorkerError

PATIENCE = 10.0
"""Seconds that a Ray given by its address has to answer."""

STARTS = 2
"""How often a Ray of our own is tried to be started: on a busy machine it may not be up in time."""

STORE_BYTES = 100 << 20
"""Object store of a Ray of our own: no rows pass through it, only paths and small answers."""

SOCKET_BYTES = 107 if sys.platform == "linux" else 103
"""Longest path of a Unix socket."""

SESSION_BYTES = 70
"""What Ray adds to its temporary folder for the longest of its sockets."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A Ray that can be used.

    Attributes:
        own: Whether it was started here, on this machine and with this process's file system.
    """

    own: bool


@contextlib.contextmanager
def connect(section: ExecutorSection, folder: Path) -> Iterator[Connection]:
    """Use the Ray of this process, else the one at the address, else a new one on this machine.

    A Ray that is connected already is left connected; every other is left at the end, and a new
    one is ended and its files are removed. Environment and signal handlers stay as they are.

    Args:
        section: Address and size.
        folder: The workspace, which tells its temporary folders from those of others.

    Raises:
        BusyError: Nothing answers at the address.
        ConfigurationError: The address is none, or Ray at it does not let us in.
        WorkerError: Ray cannot be started on this machine.
    """
    if ray.is_initialized():
        yield Connection(own=False)
    elif section.address in (None, "local"):
        with _temporary(folder) as temporary, _settings_kept():
            try:
                _start(section, temporary)
                yield Connection(own=True)
            finally:
                ray.shutdown(wait_for_processes=True)
    else:
        with _settings_kept():
            try:
                _join(section.address)
                yield Connection(own=False)
            finally:
                ray.shutdown()


def _start(section: ExecutorSection, temporary: Path) -> None:
    """Start Ray on this machine: with a token of its own, quiet, all its files in one folder."""
    wanted = section.workers * section.cpus_per_shard if section.workers else cpus()
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")  # a busy machine is slow
    _forget_authentication()
    again = Retrying(
        retry=retry_if_exception(lambda error: "timed out" in str(error).lower()),
        stop=stop_after_attempt(STARTS),
        before_sleep=lambda _: ray.shutdown(),
        reraise=True,
    )
    try:
        with _environment_for_workers(), _handlers_kept():
            again(
                ray.init,
                address="local",
                num_cpus=math.ceil(max(wanted, section.cpus_per_shard)),
                object_store_memory=STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(temporary),
                object_spilling_directory=str(temporary / "spill"),
            )
    except Exception as error:
        raise WorkerError(
            f"Ray could not be started on this machine: {_first_line(error)}.",
            "Free memory and disk, or set runtime.executor.kind to process.",
        ) from error


def _join(address: str) -> None:
    """Connect to a running Ray."""
    remedy = "Check runtime.executor.address and RAY_ADDRESS, or unset both to use this machine."
    if address != "auto":
        _knock(address, remedy)
    # Ray tries for minutes otherwise; what is wrong after a few times stays wrong.
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "3")
    _forget_authentication()
    try:
        with _handlers_kept():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ValueError as error:
        raise ConfigurationError(
            f"Ray cannot be used at {address}: {_first_line(error)}.", remedy
        ) from error
    except (Exception, SystemExit) as error:  # Ray's SIGTERM handler exits while it connects
        if _refused(error):
            raise ConfigurationError(
                f"Ray at {address} does not accept our token.",
                "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as it has them.",
            ) from error
        if "ersion mismatch" in str(error):
            raise ConfigurationError(
                f"Ray at {address} has another version of Ray or Python than is installed here.",
                "Install the versions of requirements.lock in both places.",
            ) from error
        raise BusyError(f"Ray at {address} cannot be reached.", remedy) from error


def _knock(address: str, remedy: str) -> None:
    """See quickly whether anything like Ray listens; its own client would wait for minutes.

    Raises:
        ConfigurationError: The address is none.
        BusyError: Nothing like Ray answers.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigurationError(
            f"{address} is no address of Ray.", "Write it as host:port, ray://host:port or auto."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
        if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
            with grpc.insecure_channel(f"{host}:{port}") as channel:
                grpc.channel_ready_future(channel).result(timeout=PATIENCE)
    except (OSError, OverflowError, grpc.FutureTimeoutError) as error:
        raise BusyError(f"No Ray answers at {address}.", remedy) from error


def _refused(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is about authentication."""
    while error is not None:
        if isinstance(error, exceptions.AuthenticationError) or "AuthenticationError" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")


def _forget_authentication() -> None:
    """Let Ray read the environment again: it keeps the mode and the token that it read first.

    There is no public way; a Ray without these two names keeps what it read.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _settings_kept() -> Iterator[None]:
    """Put back what Ray and this module set in the environment."""
    before = dict(os.environ)
    try:
        yield
    finally:
        names = {n for n in {*before, *os.environ} if n.startswith("RAY_")}
        _set_environment({n: before.get(n) for n in names | {"PYTHONBREAKPOINT"}})
        _forget_authentication()


@contextlib.contextmanager
def _environment_for_workers() -> Iterator[None]:
    """What the processes of a Ray that is started meanwhile get: our import path, no secret."""
    changes: dict[str, str | None] = {n: None for n in os.environ if n.startswith("SISA_")}
    changes["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    changes["PYTHONHASHSEED"] = "0"  # user code may walk a set of strings
    before = {name: os.environ.get(name) for name in changes}
    _set_environment(changes)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put back the handler of SIGTERM, which Ray replaces when it starts."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A folder for Ray's sockets, logs and spilled objects, removed at the end.

    Those that killed processes have left behind are removed as well.
    """
    prefix = ray_folders.prefix(folder)
    base = _base(len(prefix) + 8)
    ray_folders.sweep(folder)
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    handle = os.open(made / ray_folders.LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(handle)


def _base(name: int) -> Path:
    """The system's temporary folder, or /tmp where Ray's socket paths would become too long."""
    usual = Path(tempfile.gettempdir())
    short = Path("/tmp")  # noqa: S108 - mkdtemp makes a private folder below it
    fits = len(os.fsencode(usual)) + 1 + name + SESSION_BYTES <= SOCKET_BYTES
    return usual if fits or not os.access(short, os.W_OK | os.X_OK) else short
