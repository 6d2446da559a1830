"""Memory for batches that worker processes fill and the main process reads, used again and again.

A fresh block for each batch costs about a tenth of what decoding costs: its pages are made and cleared one by one.
Here a worker takes the first free slot, writes the rows of a batch into it, and sends only the slot's number. The main
process makes a tensor over the slot; when the last view of that is gone, the slot is free again. A batch that is kept
just keeps its slot: when none is free, a worker takes fresh memory. What is never needed is never made.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import weakref

import numpy as np
import torch
from torch import Tensor

from aurora_ds.config import RunConfig
from aurora_ds.data.blank import BlankMedium
from aurora_ds.data.media import Medium
from aurora_ds.data.phrases import PlacedMedium
from aurora_ds.errors import AuroraError

_FLOAT = 4  # bytes
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


class BatchMemory:
    """`slots` batches of at most `floats` numbers each. Made before the workers fork.

    What is never written takes address space only. Raises OSError where the system does not give even that.
    """

    _made: weakref.WeakValueDictionary[int, BatchMemory] = weakref.WeakValueDictionary()

    def __init__(self, slots: int, floats: int):
        self._floats = floats
        self._slots = [mmap.mmap(-1, max(1, floats * _FLOAT)) for _ in range(slots)]
        # A pipe for each slot, with a byte in it as long as the slot is free: whoever reads the byte owns the slot.
        self._pipes: list[tuple[int, int]] = []
        weakref.finalize(self, _close, self._pipes)
        for number in range(slots):
            self._pipes.append(os.pipe())
            os.set_blocking(self._pipes[number][0], False)
            self.release(number)
        self.name = id(self)
        self._made[self.name] = self

    def take(self, shape: tuple[int, ...]) -> FilledSlot | None:
        """A free slot as float32 of `shape`; None when there is none, or it is too small."""
        if math.prod(shape) > self._floats:
            return None
        for number, (free, _) in enumerate(self._pipes):
            try:
                os.read(free, 1)
            except BlockingIOError:
                continue
            return FilledSlot(self, number, shape)
        return None

    def rows(self, number: int, shape: tuple[int, ...]) -> np.ndarray:
        """The slot's numbers."""
        return np.frombuffer(self._slots[number], np.float32, math.prod(shape)).reshape(shape)

    def release(self, number: int) -> None:
        """The slot may be filled again."""
        os.write(self._pipes[number][1], b"\0")

    @classmethod
    def named(cls, name: int) -> BatchMemory:
        """In the main process: the one that a worker inherited."""
        return cls._made[name]


class Filling:
    """A batch of `rows` media that is being made: in a slot of `memory`, or in a block of its own."""

    def __init__(self, config: RunConfig, rows: int, memory: BatchMemory | None):
        self._config, self._rows, self._memory, self._place = config, rows, memory, 0
        self._slot: FilledSlot | None = None
        self._batch: np.ndarray | None = None

    def add(self, medium: Medium | BlankMedium | PlacedMedium, random: np.random.Generator | None) -> None:
        """The next row, augmented with draws from `random` or not. Raises AuroraError for another shape than before."""
        shape = medium.shape(self._config.backbone.vision.image_size)
        if self._batch is None:
            self._slot = None if self._memory is None else self._memory.take((self._rows, *shape))
            self._batch = (
                np.empty((self._rows, *shape), np.float32) if self._slot is None else self._slot.rows()
            )
        if self._batch.shape[1:] != shape:
            raise AuroraError(
                f"Sample {medium.key} is of shape {shape}, others of its batch are {self._batch.shape[1:]}. "
                "Images and clips, or sets of different numbers of images, cannot be in one run: use shards of one "
                "kind of media."
            )
        medium.write(self._batch[self._place], self._config, random)
        self._place += 1

    @property
    def filled(self) -> FilledSlot | Tensor | None:
        """float32 (rows, …) when all rows are there; its slot where it is in one."""
        return self._slot or (None if self._batch is None else torch.from_numpy(self._batch))


class FilledSlot:
    """A batch in a slot. Between processes only its place travels."""

    def __init__(self, memory: BatchMemory, number: int, shape: tuple[int, ...]):
        self.memory, self.number, self.shape = memory, number, shape

    def __reduce__(self) -> tuple:
        return _arrived, (self.memory.name, self.number, self.shape)

    def rows(self) -> np.ndarray:
        """Float32 of `shape`, to be filled. For the process that took the slot."""
        return self.memory.rows(self.number, self.shape)

    def tensor(self) -> Tensor:
        """The rows; the slot is free when this tensor and all views of it are gone. Called once."""
        rows = self.rows()
        # PyTorch keeps exactly this array as long as it needs the numbers.
        weakref.finalize(rows, self.memory.release, self.number).atexit = False
        return torch.from_numpy(rows)

    def pin_memory(self, device: object = None) -> Tensor:
        """What DataLoader's pinning thread calls: a pinned copy; the slot is free at once."""
        pinned = torch.from_numpy(self.rows()).pin_memory()
        self.memory.release(self.number)
        return pinned


def _arrived(name: int, number: int, shape: tuple[int, ...]) -> FilledSlot:
    return FilledSlot(BatchMemory.named(name), number, shape)


def keep_freed_memory() -> None:
    """Lets glibc keep 64 MiB that this process frees, where it is the allocator.

    It gives freed memory of pictures back at once and gets it anew for the next one, page by page, which costs as much
    as the fresh blocks above. What is larger than a picture of 8 million pixels still goes back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_TRIM_THRESHOLD, 64 * 2**20)


def _close(pipes: list[tuple[int, int]]) -> None:
    for pipe in pipes:
        for end in pipe:
            os.close(end)
