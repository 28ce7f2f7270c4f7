"""Read an offline W&B run without an account, a server or wandb's own process (6 ms instead of 1 s).

A .wandb file is a LevelDB log: blocks of 32 KiB holding chunks (checksum, length, kind) of protobuf records.
The record type is not a public interface of wandb: a change of it shows in `test_tracking.py`.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as wire

BLOCK = 32768
FILE_HEAD = struct.Struct("<4sHB")
CHUNK_HEAD = struct.Struct("<IHB")
WHOLE, LAST = 1, 4  # the chunk kinds that end a record


def read_run(folder_or_file: Path, patience: float = 5.0) -> dict[str, Any]:
    """What one run logged: run, config, history, summary, metrics, artifacts, exit_code (None: never closed).

    Takes an offline-run folder or its .wandb file. A file torn by a kill is read up to the tear. Nested
    values are nested dicts; a name like "irl/loss" is one key. The end of the file may be written a moment
    after `finish()` returned in this process: waits for it up to `patience` seconds.
    """
    path = folder_or_file
    if path.is_dir():
        (path,) = path.glob("*.wandb")
    deadline = time.monotonic() + patience
    while (seen := _read(path))["exit_code"] is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return seen


def _read(path: Path) -> dict[str, Any]:
    seen: dict[str, Any] = {
        "run": {},
        "config": {},
        "history": [],
        "summary": {},
        "metrics": [],
        "artifacts": [],
    }
    seen["exit_code"] = None
    for record in _records(path.read_bytes()):
        _add(seen, record)
    return seen


def _add(seen: dict[str, Any], record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        seen["run"] = _about(record.run)
        _put_all(seen["config"], record.run.config.update)
    elif kind == "config":
        _put_all(seen["config"], record.config.update)
    elif kind == "history":
        seen["history"].append(_put_all({}, record.history.item))
    elif kind == "summary":
        _put_all(seen["summary"], record.summary.update)
    elif kind == "metric":
        name = record.metric.name or record.metric.glob_name
        seen["metrics"].append({"name": name, "step": record.metric.step_metric})
    elif kind == "artifact":
        seen["artifacts"].append(_artifact(record.artifact))
    elif kind == "exit":
        seen["exit_code"] = record.exit.exit_code


def _about(run: Any) -> dict[str, Any]:
    about = {"id": run.run_id, "name": run.display_name, "project": run.project, "group": run.run_group}
    about |= {"job_type": run.job_type, "tags": list(run.tags), "notes": run.notes, "commit": run.git.commit}
    return about


def _artifact(artifact: Any) -> dict[str, Any]:
    """`made` by the run (its output), `used` by it (its input), or both; `entries` are the names of its files."""
    about = {"name": artifact.name, "type": artifact.type, "aliases": sorted(artifact.aliases)}
    about |= {"made": not artifact.user_created, "used": artifact.use_after_commit}
    about |= {"metadata": json.loads(artifact.metadata or "{}")}
    return about | {"entries": [entry.path for entry in artifact.manifest.contents]}


def _put_all(tree: dict[str, Any], items: Iterable[Any]) -> dict[str, Any]:
    for item in items:
        *parents, last = list(item.nested_key) or [item.key]
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = json.loads(item.value_json)
    return tree


def _records(data: bytes) -> Iterator[Any]:
    if not data:
        return
    identity, magic, _ = FILE_HEAD.unpack_from(data)
    assert (identity, magic) == (b":W&B", 0xBEE1), f"not a .wandb file: it begins with {data[:7]!r}"
    parts = b""
    for kind, chunk in _chunks(data):
        parts += chunk
        if kind in (WHOLE, LAST):
            record = wire.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            yield record
            parts = b""


def _chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, bytes) of each chunk; stops where the file was torn."""
    at = FILE_HEAD.size
    while at < len(data):
        if BLOCK - at % BLOCK < CHUNK_HEAD.size:  # padding: a chunk never begins in the last bytes of a block
            at += BLOCK - at % BLOCK
            continue
        begin = at + CHUNK_HEAD.size
        if begin > len(data):
            return
        _, length, kind = CHUNK_HEAD.unpack_from(data, at)
        if kind == 0 or begin + length > len(data):
            return
        yield kind, data[begin : begin + length]
        at = begin + length
