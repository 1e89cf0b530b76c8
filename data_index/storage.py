"""Files: durable atomic write, checked read, listing, deletion. The only file access.

Everything in the store is immutable and named by its content, so that a write can be repeated and
two attempts cannot meet. Writes become durable at `flush`, which comes before every commit; until
then a crash may leave a torn file under its final name, which no reader trusts without its sha256.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_index.errors import ConfigurationError, ExactnessError, NotFoundError

TEMPORARY = "tmp"
"""Folder of the store for what nobody will look for after a crash; swept as a whole."""

ATTEMPTS = 100
"""How often a file is written anew that a purge swept before it had its name."""


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file of the store: path relative to it, sha256 in hex, size in bytes."""

    path: str
    sha256: str
    size: int

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> FileRef:
        """From its fields as JSON holds them."""
        return cls(found["path"], found["sha256"], found["size"])


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8, no NaN: equal values have equal bytes."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256(data: bytes) -> str:
    """sha256 in hex."""
    return hashlib.sha256(data).hexdigest()


class Store:
    """A folder that holds all that a workspace keeps about its data and models.

    Args:
        root: The folder, or its `file://` URI. It is made when something is first written.

    Raises:
        ConfigurationError: The location is of a kind that is not supported.
    """

    def __init__(self, root: str | Path) -> None:
        text = str(root)
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        elif "://" in text:
            raise ConfigurationError(
                f"The store {text.split('://')[0]}://... cannot be used: only folders can.",
                "Set runtime.store to a folder.",
            )
        self.root = Path(text).absolute()
        self._unsynced: dict[Path, None] = {}
        self._checked: dict[FileRef, tuple[int, int, int]] = {}
        self._suspect = False

    def path(self, relative: str) -> Path:
        """Where a file of the store lies.

        Raises:
            ExactnessError: The path leads out of the store.
        """
        pure = PurePosixPath(relative)
        if pure.is_absolute() or ".." in pure.parts:
            raise ExactnessError(f"The path {relative!r} leads out of the store.")
        return self.root / pure

    def put(self, folder: str, suffix: str, data: bytes) -> FileRef:
        """Write bytes under the name of their content; durable after `flush`."""
        digest = sha256(data)
        ref = FileRef(f"{folder}/{digest}{suffix}", digest, len(data))
        if not self._has(ref):
            self._place(ref.path, data)
        return ref

    def put_named(self, relative: str, data: bytes) -> FileRef:
        """Write bytes under a name that the caller makes unique; durable after `flush`.

        The name does not tell the content, so the bytes are durable before the name is: a crash
        leaves the whole file or none.
        """
        self._place(relative, data, sync=True)
        return FileRef(relative, sha256(data), len(data))

    def put_new(self, relative: str, data: bytes) -> bool:
        """Write bytes under a name that nobody else has taken, durably at once.

        Returns:
            False if the name was taken; the file there is left as it is, and durable as well.
        """
        self._require_trust()
        final = self.path(relative)
        final.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(ATTEMPTS):
            try:
                new = self._link(data, final)
                break
            except FileNotFoundError:  # another one's purge swept the temporary file
                continue
        else:
            raise OSError(errno.EBUSY, "temporary files of the store do not stay", str(final))
        self._unsynced[final] = None
        self.flush()
        return new

    def _link(self, data: bytes, final: Path) -> bool:
        temporary = self._temporary()
        try:
            temporary.write_bytes(data)
            self._sync([temporary])
            os.link(temporary, final)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def create(self, folder: str, suffix: str) -> Sink:
        """Open a file that is written piece by piece and named by its content when closed."""
        return Sink(self, folder, suffix)

    def flush(self) -> None:
        """Make durable all that this object wrote: files first, then their folders.

        The folder that the store lies in is among them, for the store itself may be new. A failed
        fsync is raised and never retried, because the kernel may have dropped the pages: from then
        on this object writes nothing.
        """
        files = list(self._unsynced)
        folders: dict[Path, None] = {}
        for file in files:
            for parent in file.parents:
                folders[parent] = None
                if parent == self.root.parent:
                    break
        self._sync(files)
        self._sync(folders)
        self._unsynced.clear()

    def _sync(self, paths: Iterable[Path]) -> None:
        """Fsync files or folders; after one that failed this object writes nothing."""
        self._require_trust()
        try:
            with ThreadPoolExecutor(max_workers=8) as pool:
                list(pool.map(_fsync, paths))
        except FileNotFoundError:
            raise  # no fsync has failed
        except OSError:
            self._suspect = True
            raise

    def _require_trust(self) -> None:
        if self._suspect:
            raise OSError(errno.EIO, "an earlier write to the store did not become durable")

    def read(self, ref: FileRef) -> bytes:
        """Read a file and check it.

        Raises:
            ExactnessError: It is missing or its bytes are not those that were written.
        """
        try:
            data = self.path(ref.path).read_bytes()
        except FileNotFoundError:
            raise _missing(ref) from None
        if sha256(data) != ref.sha256:
            raise _damaged(ref)
        return data

    def checked(self, ref: FileRef) -> Path:
        """A file to be read in parts: its bytes are checked once, and again if it changes.

        Raises:
            ExactnessError: It is missing or its bytes are not those that were written.
        """
        path = self.path(ref.path)
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                seen = found.st_ino, found.st_mtime_ns, found.st_size
                if self._checked.get(ref) != seen:
                    if hashlib.file_digest(file, "sha256").hexdigest() != ref.sha256:
                        raise _damaged(ref)
                    self._checked[ref] = seen
        except FileNotFoundError:
            raise _missing(ref) from None
        return path

    def read_unchecked(self, relative: str) -> bytes:
        """Read a file whose name says its digest, or that carries its own check.

        Raises:
            NotFoundError: There is no such file.
        """
        try:
            return self.path(relative).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"{relative} is missing from the store.") from None

    def list(self, prefix: str = "") -> Iterator[str]:
        """Paths of all files below a folder of the store, sorted."""
        top = self.path(prefix) if prefix else self.root
        for folder, folders, names in os.walk(top):
            folders.sort()
            inner = Path(folder).relative_to(self.root)
            for name in sorted(names):
                yield f"{inner.as_posix()}/{name}" if inner.parts else name

    def holds(self, ref: FileRef) -> bool:
        """Whether a file is there with its recorded size; its bytes are not read."""
        try:
            return self.path(ref.path).stat().st_size == ref.size
        except FileNotFoundError:
            return False

    def intact(self, ref: FileRef) -> bool:
        """Whether a file is there with its recorded bytes."""
        try:
            self.read(ref)
        except ExactnessError:
            return False
        return True

    def delete(self, paths: Iterable[str]) -> int:
        """Delete files, durably; what is gone already does not matter. Returns how many went."""
        folders: dict[Path, None] = {}
        count = 0
        for relative in paths:
            file = self.path(relative)
            self._unsynced.pop(file, None)
            try:
                file.unlink()
            except FileNotFoundError:
                continue
            count += 1
            folders[file.parent] = None
        self._sync(folders)
        return count

    def settle(self, folders: Iterable[str]) -> None:
        """Make durable what is gone from below folders, whoever deleted it.

        One that was killed after it deleted a file left nothing to delete again, and a power cut
        could bring the file back.
        """
        tops = (self.path(folder) for folder in folders)
        self._sync([Path(found) for top in tops for found, _, _ in os.walk(top)])

    def scratch(self) -> Path:
        """A new folder for temporary files; the caller removes it, purge does so after a crash."""
        folder = self.root / TEMPORARY / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def remove_scratch(self) -> int:
        """Remove all temporary files. Returns how many.

        One of somebody who is writing meanwhile may come back or be gone: see `put_new`.
        """
        count = sum(1 for _ in self.list(TEMPORARY))
        if (self.root / TEMPORARY).exists():
            shutil.rmtree(self.root / TEMPORARY, onerror=_unless_raced)
        if self.root.exists():
            self._sync([self.root])  # even if it was gone already: see `settle`
        return count

    def _place(self, relative: str, data: bytes, sync: bool = False) -> None:
        self._require_trust()
        final = self.path(relative)
        temporary = self._temporary()
        try:
            temporary.write_bytes(data)
            if sync:
                self._sync([temporary])
            self._rename(temporary, final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _temporary(self) -> Path:
        folder = self.root / TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        return folder / uuid.uuid4().hex

    def _has(self, ref: FileRef) -> bool:
        """Whether a file is there already, whole; durable after `flush`, whoever wrote it.

        It is left in its place: it may be current, and what replaced it is not durable yet.
        """
        self._require_trust()
        if not (self.holds(ref) and self.intact(ref)):
            return False
        self._unsynced[self.path(ref.path)] = None
        return True

    def _rename(self, temporary: Path, final: Path) -> None:
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, final)
        self._unsynced[final] = None


class Sink(io.RawIOBase):
    """A file of the store in the making; a context manager.

    Leaving it without an error renames the file to its content's name and sets `ref`; an error
    removes it.
    """

    ref: FileRef

    def __init__(self, store: Store, folder: str, suffix: str) -> None:
        super().__init__()
        self._store, self._folder, self._suffix = store, folder, suffix
        self._temporary = store._temporary()
        self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed in __exit__
        self._hash = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        """It can be written, and nothing else."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size

    def write(self, data: Any) -> int:
        """Append bytes."""
        view = memoryview(data).cast("B")
        self._file.write(view)
        self._hash.update(view)
        self._size += len(view)
        return len(view)

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        """Name the file by its content, or remove it after an error."""
        self._file.close()
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
            return
        digest = self._hash.hexdigest()
        self.ref = FileRef(f"{self._folder}/{digest}{self._suffix}", digest, self._size)
        if self._store._has(self.ref):
            self._temporary.unlink()
        else:
            self._store._rename(self._temporary, self._store.path(self.ref.path))


def _missing(ref: FileRef) -> ExactnessError:
    return ExactnessError(
        f"{ref.path} is missing from the store.", "Restore the store from a backup."
    )


def _damaged(ref: FileRef) -> ExactnessError:
    return ExactnessError(
        f"{ref.path} is damaged: its sha256 is not the recorded one.",
        "Restore the file from a backup, or delete it and run `sisa train`.",
    )


def _unless_raced(_: object, __: object, found: tuple[Any, BaseException, Any]) -> None:
    error = found[1]
    if not isinstance(error, OSError) or error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
        raise error


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
