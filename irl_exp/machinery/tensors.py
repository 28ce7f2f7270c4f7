"""Files of safetensors in parts: what is larger than memory is written without a copy, and read where it lies.

The library copies every array before it writes, and maps with torch alone, which a report does without.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open


def header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Of each tensor its dtype, shape and data_offsets, and where the data begin.

    Raises:
        SafetensorError: the file is damaged, or is another one.
    """
    with safe_open(path, framework="np"), path.open("rb") as file:  # the library refuses what is none
        (length,) = struct.unpack("<Q", file.read(8))
        found = json.loads(file.read(length))
    found.pop("__metadata__", None)
    return found, 8 + length


def write(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """A file of these arrays."""
    said: dict[str, Any] = {}
    start = 0
    for name, values in arrays.items():
        said[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [start, start := start + values.nbytes]}
    text = json.dumps(said).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in arrays.values():
            np.ascontiguousarray(values, dtype="<f4").tofile(file)


def mapped(path: Path) -> dict[str, NDArray[np.float32]]:
    """The arrays of such a file, mapped into memory: only what is read is there, and it may go again.

    Raises:
        SafetensorError: it is damaged.
    """
    tensors, begin = header(path)
    found: dict[str, NDArray[np.float32]] = {}
    for name, own in tensors.items():
        (start, end), shape = own["data_offsets"], tuple(own["shape"])
        there = end > start  # of nothing there is no map
        found[name] = np.memmap(path, "<f4", "r", begin + start, shape) if there else np.empty(shape, "<f4")
    return found
