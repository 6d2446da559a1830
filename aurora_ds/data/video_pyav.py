"""Clips by PyAV (FFmpeg): frames by number, decoding as little as gives the frames of a sequential decode.

The packets of a clip are read once, without decoding: that gives the exact number and times of its frames for every
container. Decoding then runs forward, jumps only when a key frame lies between its place and the next frame that is
asked for, and passes over pictures that are neither asked for nor needed by others. Should a frame not be found where
it must be, everything is decoded in turn.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.video_container import MAX_PIXELS, OpenStream, open_stream
from aurora_ds.errors import AuroraError

# Their pictures build on the ones before even where a packet calls itself a key frame.
NO_JUMPS = ("gif",)
# Their packets say for certain that no other picture builds on this one: it is decoded only if it is wanted.
SKIPPABLE = ("h264",)
PICTURE_I = 1  # av.video.frame.PictureType.I


@dataclass(frozen=True)
class VideoInfo:
    """What a clip is. Width and height are as shown, after rotation (degrees anticlockwise: 0, 90, 180, 270)."""

    seconds: float
    frames: int
    fps: float
    width: int
    height: int
    rotation: int
    codec: str
    extension: str


class Clip:
    """An open clip. `times`: float64 (frames,), seconds from its first frame; `seconds`: when the last one ends."""

    def __init__(self, opened: OpenStream, jumps: bool):
        self.name, self.extension, self._stream = opened.name, opened.extension, opened.stream
        self.stream_index, self._start = opened.stream.index, 0.0
        self._context, self._packets = opened.stream.codec_context, opened.packets
        self._problem = "they are missing"
        shown = [packet for packet in self._packets if _shown(packet, self._context.name)]
        marks = [packet.pts for packet in shown]
        # AVI has no presentation times, others may leave them out. Then frames are known by their order only.
        guessed = opened.container == "avi" and self._context.has_b_frames
        self._ordinal = guessed or None in marks or len(set(marks)) < len(marks)
        self._jumps = jumps and not self._ordinal and self._context.name not in NO_JUMPS
        self._skippable = self._skips = jumps and not self._ordinal and self._context.name in SKIPPABLE
        self._marks: list[int] = list(range(len(shown))) if self._ordinal else sorted(marks)
        if not self._marks:
            raise BadSample(f"Clip {self.name} has a video stream without frames.", reason="not_a_video")
        self._keys = sorted(
            (packet.pts, place)
            for place, packet in enumerate(self._packets)
            if self._jumps and packet.is_keyframe and packet.pts is not None
        )
        self._wanted: set[int] = set()
        self._place, self._run, self._before, self._after = 0, None, None, None
        self.times, self.seconds = self._timeline(shown)

    def close(self) -> None:
        """Lets go of packets and frames, which else wait for Python's collector: they refer to one another."""
        self._packets, self._run, self._before, self._after = [], None, None, None

    def __len__(self) -> int:
        return len(self._marks)

    def info(self) -> VideoInfo:
        """Decodes the first frame, which knows the rotation. Raises BadSample."""
        first = next(self.decoded([0]))
        turns = _turns(first)
        height, width = (first.width, first.height) if turns % 2 else (first.height, first.width)
        return VideoInfo(
            seconds=self.seconds,
            frames=len(self),
            fps=len(self) / self.seconds,
            width=width,
            height=height,
            rotation=90 * turns,
            codec=self._context.codec.canonical_name,
            extension=self.extension,
        )

    def check(self, numbers: Sequence[int]) -> None:
        """Raises AuroraError unless `numbers` are frames of the clip, one or more."""
        wanted = [int(number) for number in numbers]
        if not wanted or not 0 <= min(wanted) <= max(wanted) < len(self):
            raise AuroraError(f"Clip {self.name} has frames 0 to {len(self) - 1}; {wanted} were asked for.")

    def shown_at(self, number: int) -> float:
        """Second at which a frame appears by the container's own clock, which need not start at 0."""
        return self._start + float(self.times[number])

    def pictures(self, numbers: Sequence[int], size: int | None = None) -> np.ndarray:
        """uint8 (T, H, W, 3): the frames `numbers`, in any order, as shown. Raises BadSample.

        `size`: both sides, in pixels; None: as large as they are.
        """
        wanted = sorted({int(number) for number in numbers})
        pictures = dict(zip(wanted, self.each(wanted, size), strict=True))
        return np.stack([pictures[int(number)] for number in numbers])

    def each(self, wanted: Sequence[int], size: int | None = None) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3) for each of the ascending frame numbers `wanted`. Raises BadSample.

        A frame that is damaged beyond decoding is replaced by the one before it, as a player would show it, unless
        that befalls more than half of them; one of another size than the first is scaled to the first one's.
        """
        import av

        sides = (size, size) if size else None
        for frame in self.decoded(wanted):
            sides = sides or (frame.width, frame.height)
            try:
                yield to_pixels(frame, sides)
            except (av.FFmpegError, ValueError) as error:
                raise BadSample(
                    f"Clip {self.name}: its pictures ({frame.format.name}) cannot be shown: {error}.",
                    reason="decode",
                ) from error

    def decoded(self, wanted: Sequence[int]) -> Iterator[Any]:
        """PyAV frames of the ascending frame numbers `wanted`, one each. Raises BadSample."""
        marks, lost = [self._marks[number] for number in wanted], 0
        self._wanted = set(marks)
        self._restart(0)
        for mark in marks:
            found = self._reach(mark)
            if (found is None or found[0] != mark) and (self._jumps or self._skips):
                # Perhaps what was left out is what is missing: from here on every packet is decoded.
                self._jumps = self._skips = False
                self._restart(0)
                found = self._reach(mark)
            lost += found is None or found[0] != mark
            if found is None or 2 * lost > max(len(marks), 2):
                raise BadSample(
                    f"Clip {self.name}: {lost} or more of the {len(marks)} frames asked for cannot be decoded "
                    f"({self._problem}).",
                    reason="decode",
                )
            yield found[1]

    def _restart(self, start: int) -> None:
        """Decoding goes on from the packet at place `start`."""
        self._context.flush_buffers()
        self._place, self._run = start, self._forward(start)
        self._before = self._after = (
            None  # (mark, frame) of the last frame up to the one sought, and of one beyond
        )

    def _reach(self, mark: int) -> tuple[int, Any] | None:
        """(its mark, frame): the frame at `mark`, which lies further on; if it is missing, one beside it."""
        key = self._key(mark)
        if key > self._place:
            self._restart(key)
            self._after = next(self._run, None)
            if self._after is None or not self._starts_afresh(self._after, key):
                return None
        while self._before is None or self._before[0] < mark:
            self._after = self._after or next(self._run, None)
            if self._after is None or self._after[0] > mark:
                break
            self._before, self._after = self._after, None
        return self._before or self._after

    def _forward(self, start: int) -> Iterator[tuple[int, Any]]:
        """(mark, frame) of the frames that packets from `start` on decode to, in the order in which they are shown."""
        import av

        ordinal = 0
        least = self._packets[start].pts if start else None
        for place in range(start, len(self._packets) + 1):
            self._place = place + 1
            packet = self._packets[place] if place < len(self._packets) else None
            if self._skippable:
                needed = packet is None or not self._skips or packet.pts in self._wanted
                self._context.skip_frame = "DEFAULT" if needed else "NONREF"
            try:
                frames = self._context.decode(packet)
            except av.FFmpegError as error:
                self._problem = str(error)
                continue
            for frame in frames:
                mark = ordinal if self._ordinal else frame.pts
                ordinal += 1
                # Pictures that follow a key frame in the file but are shown before it need the pictures before it.
                if mark is not None and (least is None or mark >= least):
                    yield mark, frame

    def _key(self, mark: int) -> int:
        """Place of the packet from which decoding can start to reach the frame at `mark`."""
        found = bisect_right(self._keys, (mark, len(self._packets)))
        return self._keys[found - 1][1] if self._jumps and found else 0

    def _starts_afresh(self, first: tuple[int, Any], key: int) -> bool:
        """Whether this first frame after a jump is the key frame, complete in itself.

        H.264 with gradual refresh also calls pictures key frames that need what came before.
        """
        mark, frame = first
        return mark == self._packets[key].pts and frame.pict_type == PICTURE_I

    def _timeline(self, shown: list[Any]) -> tuple[np.ndarray, float]:
        """(times, seconds): when frames appear, counted from the first, and when the last one ends."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        usual, base = (1 / float(rate) if rate else 1 / 25), float(self._stream.time_base)
        if self._ordinal:
            stamps = [packet.dts for packet in shown]
            if None in stamps or len(set(stamps)) < len(stamps):
                return np.arange(len(self)) * usual, len(self) * usual
        else:
            stamps = self._marks
        self._start = min(stamps) * base
        times = (np.sort(np.asarray(stamps, dtype=np.float64)) - min(stamps)) * base
        last = max(shown, key=lambda packet: packet.dts if self._ordinal else packet.pts)
        return times, float(times[-1]) + (last.duration * base if last.duration else usual)


@contextmanager
def open_clip(
    content: bytes | Path, name: str, max_pixels: int = MAX_PIXELS, jumps: bool = True
) -> Iterator[Clip]:
    """The clip in these bytes (or this file), closed at the end. Its first video stream counts; cover pictures do not.

    `jumps` False decodes every packet in turn. Raises BadSample: not_a_video, too_large, decode.
    """
    with open_stream(content, name, max_pixels) as opened:
        clip = Clip(opened, jumps)
        try:
            yield clip
        finally:
            clip.close()


def to_pixels(frame: Any, sides: tuple[int, int] | None = None) -> np.ndarray:
    """A PyAV frame -> uint8 (H, W, 3), RGB, rotated as shown. `sides`: scaled to this width and height, bicubic."""
    if sides and sides != (frame.width, frame.height):
        scaled = frame.reformat(*sides, format="rgb24", interpolation=exact_bicubic(), threads=1)
        pixels = scaled.to_ndarray()
    else:
        pixels = frame.to_ndarray(format="rgb24", threads=1)
    turns = _turns(frame)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def exact_bicubic() -> int:
    """FFmpeg's bicubic filter, computed the same way on every processor."""
    from av.video.reformatter import Interpolation

    return Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


def _turns(frame: Any) -> int:
    """By how many quarters a frame is to be turned anticlockwise."""
    return round(frame.rotation / 90) % 4


def _shown(packet: Any, codec: str) -> bool:
    """Whether a packet becomes a picture on screen: not those before an edit's start, nor VP8's hidden references."""
    if packet.is_discard:
        return False
    return codec != "vp8" or bool(bytes(packet)[0] & 0x10)
