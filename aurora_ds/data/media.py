"""Media of shards, decoded and transformed: images, sets of images, clips. Decoded ones are kept in a bounded buffer.

All randomness is keyed by (seed, source, turn) and the pair, or for the frames of a clip the medium, so that the pairs
of a medium share its decoded frames.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from aurora_ds.config import RunConfig, VideoConfig
from aurora_ds.data.blank import BlankMedium, read_blank
from aurora_ds.data.clip import sample_clip, write_clip, write_train_clip
from aurora_ds.data.decode import open_image
from aurora_ds.data.image import Augmentation, write_test, write_train
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.moments import stretch
from aurora_ds.data.placement import centred
from aurora_ds.data.reader import BadSample, Sample, ShardReader
from aurora_ds.data.sampling import RANDOM_STRATEGIES, Strategy

FETCHED_BYTES = 16 * 2**20
NO_MOMENT = -1
T = TypeVar("T")
_FRAMES = 4  # first number of the keys of these draws; plan.py and mixture.py have others


@dataclass(frozen=True)
class Medium:
    """A decoded medium: one RGB image, several, or the frames of a clip, uint8 (T, H, W, 3)."""

    key: str
    record: dict[str, Any]
    pixels: Image.Image | list[Image.Image] | np.ndarray

    @property
    def bytes(self) -> int:
        """What its pixels take."""
        if isinstance(self.pixels, np.ndarray):
            return self.pixels.nbytes
        images = self.pixels if isinstance(self.pixels, list) else [self.pixels]
        return sum(3 * image.width * image.height for image in images)

    def shape(self, size: int) -> tuple[int, ...]:
        """Of the tensor that it becomes: (3, S, S), (images, 3, S, S) or (T, 3, S, S)."""
        if isinstance(self.pixels, Image.Image):
            return (3, size, size)
        return (len(self.pixels), 3, size, size)

    def write(self, out: np.ndarray, config: RunConfig, random: np.random.Generator | None) -> None:
        """Transforms it into `out`, float32 of `shape`. `random`: augmented with draws from it; None: not.

        For grounding an image keeps its proportions (placement.py); training places it with its phrase."""
        if config.task == "grounding" and isinstance(self.pixels, Image.Image):
            return centred(*self.pixels.size, out.shape[-1]).write(self.pixels, out)
        options = (random, Augmentation.of(config.data))
        if isinstance(self.pixels, np.ndarray):
            if random is None:
                write_clip(self.pixels, out)
            else:
                write_train_clip(self.pixels, out, *options)
            return
        images = self.pixels if isinstance(self.pixels, list) else [self.pixels]
        for image, planes in zip(images, out.reshape(-1, *out.shape[-3:]), strict=True):
            if random is None:
                write_test(image, planes)
            else:
                write_train(image, planes, *options)


class MediaReader:
    """Reads media of several splits by (number of the split, number of the medium).

    `sampling`: how frames of clips are chosen. `augmented`: media will be, so clips keep their size; else their frames
    come resized. `note` is told (source, medium) before a medium is read from its shard, and (-1, -1) after it was.
    """

    def __init__(
        self,
        config: RunConfig,
        splits: Sequence[tuple[Manifest, str]],
        sampling: Strategy,
        buffer_mb: int = 0,
        augmented: bool = False,
        note: Callable[[int, int], None] = lambda source, medium: None,
    ):
        self._config, self._splits, self._sampling, self.note = config, splits, sampling, note
        self._clip_size = None if augmented else config.backbone.vision.image_size
        readers = {id(manifest): ShardReader(manifest) for manifest, _ in splits}
        self._readers = [readers[id(manifest)] for manifest, _ in splits]
        self._kept: OrderedDict[tuple[int, int, int, int], Medium] = OrderedDict()
        self._room = buffer_mb * 2**20
        self._fetched: dict[tuple[int, int], Sample | BadSample] = {}
        self._blank = config.data.media == "blank"

    def read(
        self, source: int, medium: int, turn: int = 0, keep: bool = False, moment: int = NO_MOMENT
    ) -> Medium | BlankMedium:
        """A medium, decoded; from the buffer where it is. `keep`: it will be asked for again. Raises BadSample.

        `moment`: number of a moment of the clip, whose stretch the frames come from, not data.video.window.
        """
        if self._blank:
            return self._noted(source, medium, self._read_blank)
        place = self._place(source, medium, turn, moment)
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        sample = self._fetched.get((source, medium)) or self._fetch(source, medium)
        if isinstance(sample, BadSample):
            raise sample
        found = Medium(sample.key, sample.record, self._decode(sample, place))
        if keep and found.bytes <= self._room:
            self._kept[place] = found
            self._room -= found.bytes
        elif keep:
            self._make_room(place, found)
        return found

    def fetch(self, places: Iterable[tuple[int, ...]]) -> None:
        """Reads the bytes of media (source, medium, turn, moment) that come next, FETCHED_BYTES at most.

        One after the other they are read in half the time that they take between decoding. What is unreadable is told
        by `read`.
        """
        self._fetched.clear()
        places = [place for place in places if self._place(*place) not in self._kept]
        for source, reader in enumerate(self._readers):
            reader.expect(self._splits[source][1], (place[1] for place in places if place[0] == source))
        size = 0
        for source, medium, *_ in [] if self._blank else places:
            if (source, medium) in self._fetched:
                continue
            if size > FETCHED_BYTES:
                break
            try:
                sample = self._fetched[source, medium] = self._fetch(source, medium)
                size += sum(len(part.content) for part in sample.parts)
            except BadSample as error:
                self._fetched[source, medium] = error

    def _fetch(self, source: int, medium: int) -> Sample:
        return self._noted(source, medium, ShardReader.read)

    def _read_blank(self, reader: ShardReader, split: str, medium: int) -> BlankMedium:
        return read_blank(reader, split, medium, self._config.data.video.frames)

    def _noted(self, source: int, medium: int, read: Callable[[ShardReader, str, int], T]) -> T:
        self.note(source, medium)
        try:
            return read(self._readers[source], self._splits[source][1], medium)
        finally:
            self.note(-1, -1)

    def _place(
        self, source: int, medium: int, turn: int, moment: int = NO_MOMENT
    ) -> tuple[int, int, int, int]:
        # Only the frames of a clip depend on the turn.
        return source, medium, turn if self._sampling in RANDOM_STRATEGIES else 0, moment

    def shard(self, source: int, medium: int) -> str:
        """The file that holds a medium."""
        manifest, split = self._splits[source]
        return manifest.address(split, medium).shard

    def place(self, source: int, medium: int) -> str:
        """The file and the number of the sample in it, from 0: its key is in the file, which may be out of reach."""
        manifest, split = self._splits[source]
        first = int(manifest.split(split).first_media[manifest.shard_of(split, medium)])
        return f"{self.shard(source, medium)} (sample {medium - first} in it)"

    def key(self, source: int, medium: int) -> str | None:
        """The key of a medium, by its record alone; None where that cannot be read either."""
        try:
            return self._readers[source].record(self._splits[source][1], medium)[0]
        except BadSample:
            return None

    def _decode(
        self, sample: Sample, place: tuple[int, int, int, int]
    ) -> Image.Image | list[Image.Image] | np.ndarray:
        data = self._config.data
        if sample.kind in ("video", "frames"):
            *keys, moment = place
            return sample_clip(
                sample,
                data.video.frames,
                self._sampling,
                frame_draws(self._config, *keys),
                window=clip_window(data.video) if moment == NO_MOMENT else _stretch(sample, moment),
                size=self._clip_size,
                max_pixels=data.max_pixels,
                decoder=data.video.decoder,
                short_clips=data.video.short_clips,
            )[0]
        if sample.kind == "images":
            return [
                open_image(part.content, data.max_pixels, f"{sample.key}, image {number}", data.image_decoder)
                for number, part in enumerate(sample.parts)
            ]
        return open_image(sample.media, data.max_pixels, sample.key, data.image_decoder)

    def _make_room(self, place: tuple[int, int, int, int], found: Medium) -> None:
        """Keeps `found` in the place of those used longest ago, unless it is larger than the whole buffer."""
        if found.bytes > self._room + sum(each.bytes for each in self._kept.values()):
            return
        while found.bytes > self._room:
            self._room += self._kept.popitem(last=False)[1].bytes
        self._kept[place] = found
        self._room -= found.bytes


def medium_shape(config: RunConfig, manifest: Manifest, split: str) -> tuple[int, ...]:
    """Shape of the split's media in a batch, by the first one's record: (3, S, S), or (T, 3, S, S) for clips."""
    reader = ShardReader(manifest)
    first = read_blank(reader, split, 0, config.data.video.frames)
    reader.close()
    return first.shape(config.backbone.vision.image_size)


def picture(config: RunConfig, reader: ShardReader, split: str, medium: int) -> np.ndarray:
    """uint8 (H, W, 3): an image to show for a medium; of a clip or a set, the one in the middle."""
    sample, data = reader.read(split, medium), config.data
    if sample.kind in ("video", "frames"):
        options = {
            "window": clip_window(data.video),
            "max_pixels": data.max_pixels,
            "decoder": data.video.decoder,
        }
        return sample_clip(sample, 1, "centre", **options)[0][0]
    part = sample.parts[len(sample.parts) // 2]
    return np.asarray(open_image(part.content, data.max_pixels, sample.key, data.image_decoder))


def frame_draws(config: RunConfig, source: int = 0, medium: int = 0, turn: int = 0) -> np.random.Generator:
    """What a random strategy draws the frames of a clip from."""
    key = np.random.SeedSequence([_FRAMES, config.seed % 2**64, source, medium, turn])
    return np.random.Generator(np.random.Philox(key))


def clip_window(video: VideoConfig) -> tuple[float, float | None] | None:
    """The stretch that frames of a whole clip come from, in seconds; None: all of it."""
    return None if video.window == "moments" else video.window


def _stretch(sample: Sample, moment: int) -> tuple[float, float]:
    return stretch(annotation(sample.record, "moments", moment, sample.key), sample.key)


def annotation(record: dict[str, Any], kind: str, which: int, key: str) -> Any:
    """Annotation number `which` of a kind: a caption is a string, others are as the record has them.

    Raises BadSample (no_annotation) when the record does not have it.
    """
    listed = record.get(kind)
    wanted = str if kind == "captions" else dict
    if not isinstance(listed, list) or which >= len(listed) or not isinstance(listed[which], wanted):
        raise BadSample(
            f"Sample {key} has no entry {which} in its {kind}: its record does not fit the manifest.",
            reason="no_annotation",
        )
    return listed[which]


def all_annotations(record: dict[str, Any], kind: str, key: str) -> list[Any]:
    """Every annotation of a kind, as `annotation` gives each."""
    listed = record.get(kind)
    return [annotation(record, kind, which, key) for which in range(max(1, len(listed or ())))]
