"""What lies below an adapter: base.json names the weights by their fingerprint, and says in which dtype they are kept.

It lies in every artifact that a chain with adapters writes. That of a reference policy holds the weights themselves (of
a new model, trained whole), or the place of the checkpoint that they are in, with the adapter of sft beside it unless
the checkpoint is the reference as it is. That of an expert or of a refinetuned policy is an adapter on the reference.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from irl_exp.machinery import tensors as tensor_files

BASE = "base.json"
ADAPTER = "adapter_config.json"


class BaseError(Exception):
    """Weights below an adapter that are not there, or are others, with the remedy."""


@dataclass(frozen=True)
class Base:
    """Weights below an adapter.

    Attributes:
        fingerprint: of the weights that an adapter in this folder lies on; of a folder of weights, its own.
        dtype: in which they are kept in memory.
        name: of the model, for messages.
        path: folder of the checkpoint; None where they are in this folder, or are those of another policy.
    """

    fingerprint: str
    dtype: Literal["bfloat16", "float32"]
    name: str = ""
    path: str | None = None

    def of(self, folder: Path) -> Base:
        """The same, named by what a folder stands for: of a policy that the next adapter lies on."""
        return replace(self, fingerprint=fingerprint(folder), path=None)

    def write(self, folder: Path) -> None:
        """Put base.json into a folder."""
        (folder / BASE).write_text(json.dumps(asdict(self), indent=1, sort_keys=True), encoding="utf-8")

    @property
    def place(self) -> Path:
        """The folder of the checkpoint, whose weights are still those.

        Raises:
            BaseError: it is gone, or holds other weights.
        """
        folder = Path(str(self.path))
        if not folder.is_dir():
            raise BaseError(
                f"{folder}: here were the weights of {self.name}, the base of an adapter. Put them back, or delete the "
                "artifact of sft, so that it is made from where model.path and model.hub say."
            )
        if fingerprint(folder) != self.fingerprint:
            raise BaseError(
                f"{folder}: these are no longer the weights of {self.name} that an adapter was made for. Put those "
                "back, or delete the artifact of sft."
            )
        return folder


def read(folder: Path) -> Base | None:
    """What base.json says; None where there is none: a model, or an adapter that somebody else has made.

    Raises:
        BaseError: it is not what `Base.write` writes.
    """
    path = folder / BASE
    if not path.is_file():
        return None
    try:
        found = Base(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BaseError(f"{path} cannot be read ({error}).") from None
    if found.dtype not in ("bfloat16", "float32"):
        raise BaseError(f"{path}: dtype={found.dtype!r} is neither bfloat16 nor float32.")
    return found


def in_bf16(folder: Path) -> bool:
    """Whether the policy in a folder is kept and computed with in bf16, whatever the device."""
    below = read(folder)
    return below is not None and below.dtype == "bfloat16"


def fingerprint(folder: Path) -> str:
    """sha256 of the weights that a folder stands for, however they are cut into files; an adapter's with its base's."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"), *folder.glob("adapter_*.json")])
    own = read(folder)
    weights = _of_files(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))
    if own is None or own.path is None:
        return weights
    return _digest([own.fingerprint, weights]) if (folder / ADAPTER).is_file() else own.fingerprint


@functools.cache
def _of_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Size and time tell whether a file is still the one that was read."""
    return _digest(sorted(part for path, _, _ in files for part in _parts(path)))


def _parts(path: Path) -> Iterator[list[Any]]:
    """Name and digest of each tensor of a safetensors file; of another file its content."""
    if path.suffix != ".safetensors":
        yield [path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
        return
    try:
        tensors, start = tensor_files.header(path)
    except SafetensorError as error:
        raise BaseError(f"{path} is no file of weights ({error}): copy it again.") from None
    with path.open("rb") as file:
        for name, tensor in tensors.items():
            first, last = tensor["data_offsets"]
            file.seek(start + first)
            yield [name, tensor["dtype"], tensor["shape"], _of_bytes(file, last - first)]


def _of_bytes(file: Any, count: int) -> str:
    digest = hashlib.sha256()
    while count:
        block = file.read(min(count, 2**22))
        if not block:
            raise BaseError(f"{file.name} ends too early: copy it again.")
        digest.update(block)
        count -= len(block)
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
