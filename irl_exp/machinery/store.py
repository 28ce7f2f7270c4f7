"""Content-addressed store of stage results: one identity is computed once, by whoever needs it first.

    <root>/<stage>/<digest>/manifest.json    written last; lists the files with their checksums
    <root>/<stage>/<digest>/...              what `compute` wrote; the folder appears whole or not at all
    <root>/<stage>/.<digest>.lock            held by the process that computes; may stay
    <root>/<stage>/.<digest>.tmp-<builder>   work in progress; after a kill, the next builder removes it
    <root>/.<builder>.beat                   says that the builder is alive (heartbeat.py); made before its folders

A kill at any moment loses the stage in flight and nothing else. Readers take no lock. Locks save double work; who
publishes is decided by the rename alone. Whoever comes second takes the result of the first.
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from irl_exp.machinery.heartbeat import Beat, Lock, Sign, clock, is_silent, lease_here, read, trying

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
_PUBLISHED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}  # a rename to where something is already
_POLL = 1.0  # seconds between two looks of somebody who has waited for long
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # from writes, which do not say the file name
_SETTLED = 2 * 10**9  # nanoseconds: a file changed later than that may change again under the same time stamp
_checksums: dict[tuple[int, ...], str] = {}  # (device, inode, size, mtime, ctime) -> sha256


class ArtifactError(Exception):
    """What is wrong, where, and what to do about it, in one line."""


class UnreadableError(ArtifactError):
    """An artifact that this user may not read: it may be whole, so nobody computes it again in its place."""


class _GivenUpError(Exception):
    """Others have waited for three leases, and removed what this process was making."""


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
    """Artifacts below one root, shared by all processes and machines that see the folder, with or without its locks.

    Args:
        lease: seconds without a sign of life after which others do the work of a builder too (IRL_EXP_LEASE, or 180).
    """

    def __init__(self, root: Path, *, lease: float | None = None) -> None:
        self.root = Path(root).expanduser().absolute()
        self.lease = lease_here() if lease is None else lease

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

        Among all processes one computes; each other one calls `on_wait` once and waits, and computes too when the
        first gave no sign of life for a lease. What `compute` raises is raised here and nothing of it stays, so the
        next call computes again. Who comes second has the result of the first, as one who waited. In a process that
        others gave up for dead, `compute` may be called twice.
        """
        start, told = time.monotonic(), False
        while not (found := self._find(identity, logging.DEBUG)):  # of damage, the one that repairs it warns
            with self._trying(identity) as lock, suppress(_GivenUpError):
                if self._is_free(self._others(identity, lock)):
                    return self._build(identity, lock, compute)
            if on_wait is not None and not told:
                on_wait(identity)
            told = True
            self._pause(start)
        return found

    def make(
        self,
        identities: Sequence[Identity],
        compute: Callable[[Mapping[str, Path]], Iterable[Mapping[str, Any]]],
    ) -> list[Artifact]:
        """Several artifacts from one computation: those that are missing and that no living process is making.

        `compute(folders)` gets a folder for each digest that it is to make; it yields the `info` of one after the
        other, in this order, when its files are complete, and it is published then. What `compute` raises is raised
        here; what was published before stays. Where nobody can tell whether another process lives, this one waits for a
        lease at most, to make all of what is missing at once.
        """
        _allow_open_files()
        start = time.monotonic()
        made: list[Artifact] = []
        while missing := [identity for identity in identities if identity not in self]:
            with ExitStack() as locks, suppress(_GivenUpError):
                if (mine := self._claim(missing, locks)) is not None:
                    if mine:
                        with self._building(mine) as (beat, folders):
                            made.extend(self._publish_each([one for one, _ in mine], compute, beat, folders))
                    break
            self._pause(start)
        return made

    def tidy(self, identities: Iterable[Identity]) -> None:
        """Remove what a killed builder of these has left, unless somebody builds them now, who will."""
        with _storage_errors(self.root, setup=True):
            left = [identity for identity in identities if self._leftovers(identity)]
            now = clock(self.root) if left else 0.0
            for identity in left:
                with self._trying(identity) as lock:
                    self._clear(identity, now, alone=lock is Lock.MINE)

    def _pause(self, start: float) -> None:
        """Between two looks: the longer somebody has waited, the longer."""
        time.sleep(min(_POLL, self.lease / 20, 0.05 + (time.monotonic() - start) / 20))

    @contextmanager
    def _trying(self, identity: Identity) -> Iterator[Lock]:
        with ExitStack() as held:
            with _storage_errors(self.root, setup=True):
                path = self._lock(identity)
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = held.enter_context(trying(path))
            yield lock

    def _others(self, identity: Identity, lock: Lock) -> dict[Path, Sign | None]:
        """The beats of those who may be making it now. Of one who has a lock and does not beat yet, the lock."""
        living: dict[Path, Sign | None] = {}
        for path in map(self._beat_of, self._leftovers(identity)):
            sign = read(path)  # whoever had the lock that is mine now has ended, or lost it
            if sign and not sign.is_gone() and not (sign.locked and lock is Lock.MINE):
                living[path] = sign
        return living or ({self._lock(identity): None} if lock is Lock.TAKEN else {})

    def _is_free(self, others: Mapping[Path, Sign | None]) -> bool:
        """Whether nobody else is making it, or nobody who gave a sign of life for a lease."""
        silent = [is_silent(path, sign, self.lease) for path, sign in others.items()]  # each is to be looked at
        return all(silent)

    def _claim(self, identities: Sequence[Identity], locks: ExitStack) -> list[tuple[Identity, Lock]] | None:
        """Those to be made here, with their locks taken where they are free; None: that cannot be told yet."""
        mine, told = [], True
        with _storage_errors(self.root, setup=True):
            self.root.mkdir(parents=True, exist_ok=True)
            now = clock(self.root)
        for identity in identities:
            lock = locks.enter_context(self._trying(identity))
            others = self._others(identity, lock)
            if self._is_free(others):
                mine += [(identity, lock)] if identity not in self else []
            elif not any(sign and sign.is_young(now) for sign in others.values()):
                told = False
        return mine if told else None

    def _build(self, identity: Identity, lock: Lock, compute: Callable[[Path], Mapping[str, Any] | None]) -> Artifact:
        with self._building([(identity, lock)]) as (beat, folders):
            # Again: what this host has read of a folder before it made something there may be old.
            if found := self._find(identity, logging.WARNING):
                return found
            infos = (compute(folder) or {} for folder in folders.values())
            [made] = self._publish_each([identity], lambda _: infos, beat, folders)
            return made

    def _publish_each(
        self,
        identities: Sequence[Identity],
        compute: Callable[[Mapping[str, Path]], Iterable[Mapping[str, Any]]],
        beat: Beat,
        folders: Mapping[str, Path],
    ) -> Iterator[Artifact]:
        """Compute in the hidden folders. The time until the first is complete is everyone's alike."""
        start, shared = time.perf_counter(), 0.0
        for identity, info in zip(identities, compute(folders), strict=True):
            seconds = time.perf_counter() - start
            shared = shared or seconds / len(identities)
            own = 0.0 if identity is identities[0] else seconds
            yield self._publish(identity, folders[identity.digest], info, shared + own, beat)
            start = time.perf_counter()

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

    @contextmanager
    def _building(self, claimed: Sequence[tuple[Identity, Lock]]) -> Iterator[tuple[Beat, dict[str, Path]]]:
        """A hidden folder for each digest, and the beat that keeps others from removing them.

        Raises:
            _GivenUpError: this process has not beaten for so long that somebody did.
        """
        builder = uuid.uuid4().hex[:8]
        folders = {identity.digest: self._hidden(identity, builder) for identity, _ in claimed}
        locked = all(lock is Lock.MINE for _, lock in claimed)
        with _storage_errors(self.root), Beat(self.root / f".{builder}.beat", self.lease, locked=locked) as beat:
            try:
                now = clock(self.root)
                for identity, _ in claimed:
                    self._clear(identity, now)
                    folders[identity.digest].mkdir()
                yield beat, folders
            except Exception as error:
                if beat.beat():
                    raise
                raise _GivenUpError from error
            finally:
                for folder in folders.values():
                    shutil.rmtree(folder, ignore_errors=True)  # what resists is left to the next builder

    def _publish(
        self, identity: Identity, hidden: Path, info: Mapping[str, Any], seconds: float, beat: Beat
    ) -> Artifact:
        """Put it in its place, unless another process was faster: then that one's is the artifact."""
        final, deadline = self.folder(identity), time.monotonic() + self.lease
        manifest = _seal(hidden, identity, info, seconds)
        if not beat.beat():  # who removes the folder removes the beat first: what lies there now may be a half
            raise _GivenUpError
        while True:
            try:
                os.replace(hidden, final)
            except OSError as error:
                if found := self._find(identity, logging.DEBUG):
                    return found
                if error.errno not in _PUBLISHED or time.monotonic() > deadline:
                    raise
                if os.path.lexists(final):
                    self._set_aside(identity, hidden)
                else:  # a host may remember for a minute that nothing is there
                    self._pause(time.monotonic())
            else:
                _fsync(final.parent)
                return Artifact(final, identity, manifest, reused=False, seconds=manifest["seconds"])

    def _set_aside(self, identity: Identity, hidden: Path) -> None:
        """Remove a damaged artifact: first out of sight, so that nobody reads a half of it."""
        final, aside = self.folder(identity), hidden.with_name(f"{hidden.name}-damaged")
        with suppress(FileNotFoundError):  # another process did the same
            os.replace(final, aside)
        try:
            _verified(aside, identity, checksums=True)
        except ArtifactError as error:
            if not isinstance(error, UnreadableError):
                _remove(aside)
                return
        with suppress(OSError):  # somebody has published it in this very moment
            os.rename(aside, final)
        _remove(aside)

    def _leftovers(self, identity: Identity) -> list[Path]:
        folder = self.root / identity.stage
        with suppress(FileNotFoundError):
            return [folder / name for name in os.listdir(folder) if name.startswith(f".{identity.digest}.tmp-")]
        return []

    def _clear(self, identity: Identity, now: float, *, alone: bool = False) -> None:
        """Remove what killed builders left, and what has been forgotten. Others stay: their owners may come back.

        Args:
            now: by the clock of the file server.
            alone: nobody builds it; a folder without a beat counts as left then, whatever its age.
        """
        for leftover in self._leftovers(identity):
            beat = self._beat_of(leftover)
            sign = read(beat) or Sign("", -math.inf if alone else _changed(leftover))
            if sign.is_gone() or sign.is_forgotten(now):
                if not sign.is_gone():
                    beat.unlink(missing_ok=True)  # first: an owner that comes back must see that it is out
                logger.info("removing %s, of a killed computation", leftover)
                _remove(leftover)
        for beat in self.root.glob(".*.beat"):
            left, builder = read(beat), beat.name.split(".")[1]
            if left and (left.is_gone() or left.is_forgotten(now)) and not any(self.root.glob(f"*/.*.tmp-{builder}*")):
                beat.unlink(missing_ok=True)

    def _lock(self, identity: Identity) -> Path:
        return self.root / identity.stage / f".{identity.digest}.lock"

    def _hidden(self, identity: Identity, builder: str) -> Path:
        return self.root / identity.stage / f".{identity.digest}.tmp-{builder}"

    def _beat_of(self, leftover: Path) -> Path:
        """Of the builder of a hidden folder."""
        return self.root / f".{leftover.name.partition('.tmp-')[2].partition('-')[0]}.beat"


def _changed(path: Path) -> float:
    """When it or anything in it was last changed, by the clock of the file server; never, if it changes right now."""
    try:
        return max(found.lstat().st_mtime for found in (path, *path.rglob("*")))
    except OSError:
        return math.inf


def _remove(path: Path) -> None:
    """A folder or file in sight of others: at once, then piece by piece. What resists is left to the next builder."""
    with suppress(OSError):
        gone = path.with_name(f"{path.name.partition('.tmp-')[0]}.tmp-{uuid.uuid4().hex[:8]}")
        os.replace(path, gone)
        if gone.is_dir() and not gone.is_symlink():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink()


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
    if not os.access(path, os.R_OK) and path.stat():  # what is removed meanwhile is not closed
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
