"""Content-addressed store of stage results: one identity is computed once, by whoever needs it first.

    <root>/<stage>/<digest>/manifest.json    written last; lists the files with their checksums
    <root>/<stage>/<digest>/...              what `compute` wrote; the folder appears whole or not at all
    <root>/<stage>/.<digest>.lock            held by the process that computes; may stay
    <root>/<stage>/.<digest>.tmp-*           work in progress; after a kill, the next builder removes it

A kill at any moment loses the stage in flight and nothing else. Readers take no lock.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import platform
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_FIELDS: dict[str, Any] = {
    "format_version": int,
    "digest": str,
    "identity": dict,
    "created": str,
    "seconds": int | float,
    "files": dict,
    "info": dict,
    "provenance": dict,
}
_OWN = "sha256"  # of the manifest itself, the fields above
_PLACE_REMEDY = "free or repair that place, or choose another one with `store.dir=...` or IRL_EXP_STORE"
_ARTIFACT_REMEDY = "delete its folder to compute it again"
_READER_REMEDY = "let its owner open it (chmod -R a+rX), or choose another store with `store.dir=...` or IRL_EXP_STORE"
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}  # what is not there is damage, else nobody can tell
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # from writes, which do not say the file name
_SETTLED = 2 * 10**9  # nanoseconds: a file changed later than that may change again under the same time stamp
_checksums: dict[tuple[int, ...], str] = {}  # (device, inode, size, mtime, ctime) -> sha256


class ArtifactError(Exception):
    """What is wrong, where, and what to do about it, in one line."""


class UnreadableError(ArtifactError):
    """An artifact that this user may not read: it may be whole, so nobody computes it again in its place."""


@dataclass(frozen=True)
class Identity:
    """What determines an artifact: identity = stage, version, config node, fingerprints of the inputs."""

    stage: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.stage[:1] in ("", ".") or Path(self.stage).name != self.stage:
            raise ValueError(f"stage={self.stage!r} must be the name of a visible folder")

    @cached_property
    def _canonical(self) -> str:
        fields = ("stage", "version", "config", "inputs")
        return _canonical({field: _plain(getattr(self, field), field) for field in fields})

    @cached_property
    def digest(self) -> str:
        """First 20 hex digits of the sha256 of canonical JSON: 1 and 1.0 are the same, True and 1 are not."""
        return hashlib.sha256(self._canonical.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Artifact:
    """A finished artifact; `seconds` is how long it took to compute, now or (`reused`) at an earlier time."""

    folder: Path
    identity: Identity
    manifest: Mapping[str, Any]
    reused: bool
    seconds: float

    @property
    def digest(self) -> str:
        return self.identity.digest


def fingerprint(path: Path) -> str:
    """sha256 of a file of the user, or of the names and contents in a folder; hidden ones do not count."""
    try:
        if not path.is_dir():
            return _checksum(path)
        listing = {name: _checksum(file) for name, file in _files(path, hidden=False).items()}
    except OSError as error:
        reason = f"{path} cannot be read ({error.strerror}: {error.filename})"
        raise ArtifactError(f"{reason}: give the path of a readable file or folder") from error
    return hashlib.sha256(_canonical(listing).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact; its form is checked, the files that it lists are not."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise _not_opened(path, error) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON ({error}): {_ARTIFACT_REMEDY}") from error
    found = manifest if isinstance(manifest, dict) else {}
    wrong = [field for field, kind in _FIELDS.items() if not isinstance(found.get(field), kind)]
    for name, entry in {} if wrong else found["files"].items():
        if not isinstance(entry, dict) or entry.keys() != {"bytes", "sha256"}:
            wrong.append(f"files.{name}")
    wrong += [field for field in found if field not in {*_FIELDS, _OWN}]
    if wrong:
        raise ArtifactError(f"{path} is malformed at {', '.join(wrong)}: {_ARTIFACT_REMEDY}")
    if (version := found["format_version"]) != FORMAT_VERSION:
        raise ArtifactError(f"{path} has format_version={version}, not {FORMAT_VERSION}: {_ARTIFACT_REMEDY}")
    if found.pop(_OWN, None) not in (None, _own_checksum(found)):  # none: of a program before this checksum
        raise ArtifactError(f"{path} was altered: {_ARTIFACT_REMEDY}")
    return found


def _own_checksum(manifest: Mapping[str, Any]) -> str:
    """What a manifest says of itself: its numbers go into metrics.json."""
    return hashlib.sha256(_canonical(manifest).encode()).hexdigest()


def verify(folder: Path) -> None:
    """Raise ArtifactError unless an artifact that is opened by its folder is whole.

    A folder without a manifest of ours is somebody's own, about which nothing is known.
    """
    try:
        manifest = read_manifest(folder)
    except ArtifactError:
        return
    _check_files(folder, manifest, checksums=True)


class Store:
    """Artifacts below one root, shared by all processes (and machines) that see the folder and its locks."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser().absolute()

    def prepare(self, *, minimum_free_bytes: int = 200 * 2**20) -> None:
        """Create the root; raise unless a file can be written there and enough space is left."""
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        with _storage_errors(self.root, setup=True):
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                probe.write_bytes(b"probe")
                _fsync(probe)
            finally:
                probe.unlink(missing_ok=True)
            free = shutil.disk_usage(self.root).free
        if free < minimum_free_bytes:
            space = f"{free >> 20} MiB free and needs {minimum_free_bytes >> 20} MiB"
            raise ArtifactError(f"the artifact store {self.root} has {space}: {_PLACE_REMEDY}")

    def folder(self, identity: Identity) -> Path:
        """Where the artifact is, or will be."""
        return self.root / identity.stage / identity.digest

    def __contains__(self, identity: Identity) -> bool:
        """Cheap: the manifest can be read, and every file that it lists is there with the right size.

        Raises:
            UnreadableError: there is an artifact, but it is closed to this user.
        """
        try:
            _verified(self.folder(identity), identity, checksums=False)
        except UnreadableError:
            raise
        except ArtifactError:
            return False
        return True

    def find(self, identity: Identity) -> Artifact | None:
        """The artifact, its checksums verified, or None; a damaged one is None and a warning in the log.

        A file is read again only after its size or time stamps changed. Unlisted files are ignored.

        Raises:
            UnreadableError: there is an artifact, but it is closed to this user.
        """
        return self._find(identity, logging.WARNING)

    def get(
        self,
        identity: Identity,
        compute: Callable[[Path], Mapping[str, Any] | None],
        *,
        on_wait: Callable[[Identity], None] | None = None,
    ) -> Artifact:
        """The artifact from the store, or made by `compute(folder)`, which writes files and returns `info`.

        Among all processes one computes; each other one calls `on_wait` once and waits. What `compute` raises
        is raised here and nothing of it stays, so the next call computes again.
        """
        if found := self._find(identity, logging.DEBUG):  # of damage, the one that repairs it warns
            return found
        with self._locked(identity, on_wait):
            return self._find(identity, logging.WARNING) or self._build(identity, compute)

    def make(
        self,
        identities: Sequence[Identity],
        compute: Callable[[Mapping[str, Path]], Iterable[Mapping[str, Any]]],
    ) -> list[Artifact]:
        """Several artifacts from one computation: those that are missing and that no other process is making.

        `compute(folders)` gets a folder for each digest that it is to make; it yields the `info` of one after the
        other, in this order, when its files are complete, and it is published then. What `compute` raises is raised
        here; what was published before stays.
        """
        _allow_open_files()
        with ExitStack() as locks:
            mine = [identity for identity in identities if self._claim(identity, locks)]
            return list(self._publish_each(mine, compute)) if mine else []

    def tidy(self, identities: Iterable[Identity]) -> None:
        """Remove what a killed builder of these has left, unless somebody builds them now, who will."""
        for identity in identities:
            if any(self._leftovers(identity)):
                with suppress(Timeout), self._lock(identity).acquire(timeout=0):
                    self._remove_leftovers(identity)

    def _claim(self, identity: Identity, locks: ExitStack) -> bool:
        """Take the lock of a missing artifact, unless another process has it."""
        if identity in self:
            return False
        with suppress(Timeout):
            locks.enter_context(self._lock(identity).acquire(timeout=0))
            return identity not in self
        return False

    def _publish_each(
        self, identities: Sequence[Identity], compute: Callable[[Mapping[str, Path]], Iterable[Mapping[str, Any]]]
    ) -> Iterator[Artifact]:
        """Under the locks: compute in hidden folders. The time until the first is complete is everyone's alike."""
        hidden = {identity.digest: self._hidden(identity) for identity in identities}
        try:
            with _storage_errors(self.root):
                for identity in identities:
                    self._clear(identity)
                    hidden[identity.digest].mkdir()
                start, shared = time.perf_counter(), 0.0
                for identity, info in zip(identities, compute(hidden), strict=True):
                    seconds = time.perf_counter() - start
                    shared = shared or seconds / len(identities)
                    own = 0.0 if identity is identities[0] else seconds
                    yield self._publish(identity, hidden[identity.digest], info, shared + own)
                    start = time.perf_counter()
        finally:
            for folder in hidden.values():
                shutil.rmtree(folder, ignore_errors=True)

    def _find(self, identity: Identity, level: int) -> Artifact | None:
        folder = self.folder(identity)
        if not os.path.lexists(folder):
            return None
        try:
            manifest = _verified(folder, identity, checksums=True)
        except UnreadableError:
            raise
        except ArtifactError as error:
            logger.log(level, "damaged artifact, not used: %s", error)
            return None
        return Artifact(folder, identity, manifest, reused=True, seconds=manifest["seconds"])

    def _lock(self, identity: Identity) -> FileLock:
        folder = self.folder(identity)
        with _storage_errors(self.root, setup=True):
            folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(folder.with_name(f".{folder.name}.lock"))

    def _locked(self, identity: Identity, on_wait: Callable[[Identity], None] | None) -> AbstractContextManager[object]:
        lock = self._lock(identity)
        with _storage_errors(self.root, setup=True), suppress(Timeout):
            return lock.acquire(timeout=0)
        if on_wait is not None:
            on_wait(identity)
        return lock.acquire()

    def _build(self, identity: Identity, compute: Callable[[Path], Mapping[str, Any] | None]) -> Artifact:
        """Under the lock: compute in a hidden folder, which one rename publishes."""
        hidden = self._hidden(identity)
        try:
            with _storage_errors(self.root):
                self._clear(identity)
                hidden.mkdir()
                start = time.perf_counter()
                info = compute(hidden)
                return self._publish(identity, hidden, info or {}, time.perf_counter() - start)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)  # what resists is left to the next builder

    def _publish(self, identity: Identity, hidden: Path, info: Mapping[str, Any], seconds: float) -> Artifact:
        final = self.folder(identity)
        manifest = _seal(hidden, identity, info, seconds)
        os.replace(hidden, final)
        _fsync(final.parent)
        return Artifact(final, identity, manifest, reused=False, seconds=manifest["seconds"])

    def _clear(self, identity: Identity) -> None:
        """Under the lock: remove a damaged artifact, and what killed builders left."""
        final = self.folder(identity)
        if os.path.lexists(final):
            os.replace(final, self._hidden(identity))  # first out of sight, so that nobody reads a half of it
        self._remove_leftovers(identity)

    def _leftovers(self, identity: Identity) -> Iterator[Path]:
        folder = self.folder(identity)
        return folder.parent.glob(f".{folder.name}.tmp-*")

    def _remove_leftovers(self, identity: Identity) -> None:
        for leftover in self._leftovers(identity):
            logger.info("removing %s, of a killed computation or a damaged artifact", leftover)
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()

    def _hidden(self, identity: Identity) -> Path:
        folder = self.folder(identity)
        return folder.with_name(f".{folder.name}.tmp-{uuid.uuid4().hex[:8]}")


def _allow_open_files(count: int = 2048) -> None:
    """Each lock is an open file, of which some systems allow 256 unless asked for more."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _plain(value: Any, where: str) -> Any:
    """`value` in dicts, lists and scalars of JSON; a TypeError names the place of anything else."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}, a {type(key).__name__}: keys must be strings")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{where}={value} is not a finite number: JSON has none such")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{where}={value!r} is a {type(value).__name__}: only JSON values are allowed")


def _canonical(plain: Any) -> str:
    """One text per value: sorted keys, no spaces, whole floats as integers."""

    def number(text: str) -> float | int:
        return int(x) if (x := float(text)).is_integer() else x

    folded = json.loads(json.dumps(plain), parse_float=number)
    return json.dumps(folded, sort_keys=True, separators=(",", ":"))


def _checksum(path: Path) -> str:
    """sha256 of a file, remembered in this process until the file's size or time stamps change."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if key in _checksums:
            return _checksums[key]
        settled = time.time_ns() - found.st_ctime_ns > _SETTLED
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    if settled:
        _checksums[key] = checksum
    return checksum


def _files(folder: Path, *, hidden: bool, prefix: str = "") -> dict[str, Path]:
    """Relative name -> path of each file below a folder; raises at a linked folder, a pipe and the like."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") and not hidden:
            continue
        if path.is_file():
            found[prefix + path.name] = path
        elif path.is_dir() and not path.is_symlink():
            found |= _files(path, hidden=hidden, prefix=f"{prefix}{path.name}/")
        else:
            raise ArtifactError(f"{path} is neither a file nor a plain folder: put a copy in its place")
    return found


def _verified(folder: Path, identity: Identity, *, checksums: bool) -> dict[str, Any]:
    """The manifest of an artifact, if it is of this identity and its files are whole; else ArtifactError."""
    manifest = read_manifest(folder)
    if (manifest["digest"], _canonical(manifest["identity"])) != (identity.digest, identity._canonical):
        raise ArtifactError(f"{folder / MANIFEST} states another identity: {_ARTIFACT_REMEDY}")
    _check_files(folder, manifest, checksums=checksums)
    return manifest


def _check_files(folder: Path, manifest: Mapping[str, Any], *, checksums: bool) -> None:
    """Raise ArtifactError at the first file that is not as the manifest says."""
    for name, listed in manifest["files"].items():
        try:
            problem = _damage(folder / name, listed, checksums=checksums)
        except OSError as error:
            raise _not_opened(folder / name, error) from error
        if problem:
            raise ArtifactError(f"{folder / name} is damaged ({problem}): {_ARTIFACT_REMEDY}")


def _damage(path: Path, listed: Mapping[str, Any], *, checksums: bool) -> str:
    """How a file differs from what the manifest says of it; empty if it does not."""
    if (size := path.stat().st_size) != listed["bytes"]:
        return f"it has {size} bytes, not {listed['bytes']}"
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return "it was altered: another sha256" if checksums and _checksum(path) != listed["sha256"] else ""


def _not_opened(path: Path, error: OSError) -> ArtifactError:
    """What it means that a file of an artifact cannot be opened: it is lost, or closed to this user."""
    if error.errno in _GONE:
        return ArtifactError(f"{path} is damaged ({error.strerror}): {_ARTIFACT_REMEDY}")
    reason = f"{path} cannot be read ({error.strerror}), so nobody can tell whether it is whole and it is not replaced"
    return UnreadableError(f"{reason}: {_READER_REMEDY}")


def _seal(folder: Path, identity: Identity, info: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Write the manifest of a computed folder, and flush everything to the disk."""
    files = _files(folder, hidden=True)
    for name, path in files.items():
        if path.is_symlink() or name == MANIFEST:
            raise ArtifactError(f"{path} is a link or the manifest: stage {identity.stage} must not write it")
    _open_as_umask_says(folder)
    manifest = {
        "format_version": FORMAT_VERSION,
        "digest": identity.digest,
        "identity": json.loads(identity._canonical),
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "seconds": round(seconds, 6),
        "files": {name: {"bytes": path.stat().st_size, "sha256": _checksum(path)} for name, path in files.items()},
        "info": _plain(dict(info), "info"),
        "provenance": {"python": platform.python_version(), "platform": platform.platform()},
    }
    text = json.dumps(manifest | {_OWN: _own_checksum(manifest)}, sort_keys=True, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        _fsync(path)
    return manifest


def _open_as_umask_says(folder: Path) -> None:
    """Who may enter the folder, which was made under the umask, may read what is in it.

    Some libraries write their files for the eyes of the owner alone; a store is shared.
    """
    open_to = folder.stat().st_mode
    for path in folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        if missing := open_to & (0o777 if path.is_dir() else 0o666) & ~mode:
            path.chmod(mode | missing)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storage_errors(root: Path, *, setup: bool = False) -> Iterator[None]:
    """A full, read-only or forbidden store is an ArtifactError; so is, during setup, any error of a file."""
    try:
        yield
    except Exception as error:
        if not (setup and isinstance(error, OSError)) and not _is_storage_error(error, root):
            raise
        place = next(path for path in (root, *root.parents) if path.exists())
        reason = f"{error}; {shutil.disk_usage(place).free >> 20} MiB free"
        raise ArtifactError(f"the artifact store {root} cannot be written ({reason}): {_PLACE_REMEDY}") from error


def _is_storage_error(error: Exception, root: Path) -> bool:
    if not isinstance(error, OSError):  # libraries in Rust, as safetensors, raise their own "... (os error 28)"
        return any(f"(os error {code})" in str(error) for code in _DISK_ERRORS)
    if error.filename is None:
        return error.errno in _DISK_ERRORS
    inside = Path(str(error.filename)).absolute().is_relative_to(root)
    return inside and error.errno in _DISK_ERRORS | {errno.EACCES, errno.EPERM}
