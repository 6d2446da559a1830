"""Clips by PyAV (FFmpeg): frames by number, decoding as little as gives the frames of a sequential decode.

The packets of a clip are read once, without decoding: that gives the exact number and times of its frames for every
container. Decoding then runs forward, and jumps only when a key frame lies between its place and the next frame that
is asked for.

The bytes come from strangers. Only containers and codecs of a list are opened, one thread decodes, and nothing but
the given bytes is read: no protocol is allowed, so playlists and references to other files lead nowhere.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.mp4_index import check_index
from aurora_ds.errors import AuroraError

# FFmpeg's name of a container -> extension in a shard.
CONTAINERS = {
    "mov,mp4,m4a,3gp,3g2,mj2": "mp4",
    "matroska,webm": "mkv",
    "avi": "avi",
    "asf": "wmv",
    "mpeg": "mpg",
    "mpegts": "ts",
    "flv": "flv",
    "gif": "gif",
}
CODECS = (
    "h264 hevc vp8 vp9 libdav1d av1 mpeg4 mpeg2video mpeg1video mjpeg h263 flv msmpeg4v1 msmpeg4v2 msmpeg4 "
    "wmv1 wmv2 wmv3 vc1 vp6 vp6f svq1 svq3 theora prores dvvideo gif"
).split()
# Their pictures build on the ones before even where a packet calls itself a key frame.
NO_JUMPS = ("gif",)
HEADER_SECONDS = ("matroska,webm", "avi", "flv")
MAX_PIXELS = 8192 * 8192
PICTURE_I = 1  # av.video.frame.PictureType.I
FIRST_BYTES = {
    0: (b"\x1aE\xdf\xa3", b"FLV", b"\x00\x00\x01\xba"),
    4: (b"ftyp", b"moov", b"mdat", b"free", b"wide"),
    8: (b"AVI ",),
}
WEBM = b"\x42\x82\x84webm"  # element DocType at the start of the file


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

    def __init__(self, container: Any, stream: Any, name: str, jumps: bool):
        self.name, self.extension, self._stream = name, CONTAINERS[container.format.name], stream
        self.stream_index, self._start = stream.index, 0.0
        self._context = stream.codec_context
        self._packets = _packets(container, stream, name)
        self._place, self._problem = 0, "they are missing"
        self._jumps = jumps and self._context.name not in NO_JUMPS
        shown = [packet for packet in self._packets if _shown(packet, self._context.name)]
        marks = [packet.pts for packet in shown]
        # AVI has no presentation times, others may leave them out. Then frames are known by their order only.
        guessed = container.format.name == "avi" and self._context.has_b_frames
        self._ordinal = guessed or None in marks or len(set(marks)) < len(marks)
        if self._ordinal:
            self._jumps, marks = False, list(range(len(shown)))
        else:
            marks.sort()
        if not marks:
            raise BadSample(f"Clip {name} has a video stream without frames.", reason="not_a_video")
        self._marks: list[int] = marks
        self._keys = [
            (packet.pts, place)
            for place, packet in enumerate(self._packets)
            if self._jumps and packet.is_keyframe and packet.pts is not None
        ]
        self._keys.sort()
        self.times, self.seconds = self._timeline(shown)

    def __len__(self) -> int:
        return len(self._marks)

    def info(self) -> VideoInfo:
        """Decodes the first frame, which knows the rotation. Raises BadSample."""
        first = next(self.decoded([0]))
        height, width = (
            (first.height, first.width) if first.rotation % 180 == 0 else (first.width, first.height)
        )
        return VideoInfo(
            seconds=self.seconds,
            frames=len(self),
            fps=len(self) / self.seconds,
            width=width,
            height=height,
            rotation=first.rotation % 360,
            codec=self._context.name,
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
        lost = 0
        run, before, after = self._forward(0), None, None
        for number in wanted:
            mark = self._marks[number]
            key = self._key(mark)
            if key > self._place:
                run, before, after = self._forward(key), None, None
                after = next(run, None)
                if after is None or not self._starts_afresh(after, key):
                    self._jumps = False
                    run, before, after = self._forward(0), None, None
            while before is None or before[0] < mark:
                after = after or next(run, None)
                if after is None or after[0] > mark:
                    break
                before, after = after, None
            found = before or after
            lost += found is None or found[0] != mark
            if found is None or 2 * lost > max(len(wanted), 2):
                raise BadSample(
                    f"Clip {self.name}: {lost} or more of the {len(wanted)} frames asked for cannot be decoded "
                    f"({self._problem}).",
                    reason="decode",
                )
            yield found[1]

    def _forward(self, start: int) -> Iterator[tuple[int, Any]]:
        """(mark, frame) of all frames that packets from `start` on decode to, in the order in which they are shown."""
        self._context.flush_buffers()
        self._place = start
        return self._frames(start)

    def _frames(self, start: int) -> Iterator[tuple[int, Any]]:
        import av

        ordinal = 0
        least = self._packets[start].pts if start else None
        for place in range(start, len(self._packets) + 1):
            self._place = place + 1
            try:
                frames = self._context.decode(self._packets[place] if place < len(self._packets) else None)
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

    `jumps` False decodes every frame in turn. Raises BadSample: not_a_video, too_large, decode.
    """
    import av

    allowed = {
        "format_whitelist": ",".join(CONTAINERS),
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": "none",
    }
    with ExitStack() as stack:
        file = io.BytesIO(content) if isinstance(content, bytes) else stack.enter_context(open(content, "rb"))
        check_index(file, name)
        try:
            container = stack.enter_context(
                av.open(file, "r", container_options=allowed, metadata_errors="ignore")
            )
            clip = Clip(container, _stream(container, name, max_pixels), name, jumps)
            clip.extension = _extension(container, _start(content))
        # FFmpegError, and what Python says of places and streams that a damaged header points to.
        except (av.FFmpegError, OSError, ValueError, EOFError, IndexError) as error:
            raise _unopened(content, name, error) from error
        yield clip


def to_pixels(frame: Any, sides: tuple[int, int] | None = None) -> np.ndarray:
    """A PyAV frame -> uint8 (H, W, 3), RGB, rotated as shown. `sides`: scaled to this width and height, bicubic."""
    from av.video.reformatter import Interpolation

    if sides and sides != (frame.width, frame.height):
        # The same on every processor.
        how = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
        scaled = frame.reformat(*sides, format="rgb24", interpolation=how, threads=1)
        pixels = scaled.to_ndarray()
    else:
        pixels = frame.to_ndarray(format="rgb24", threads=1)
    turns = frame.rotation // 90 % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _stream(container: Any, name: str, max_pixels: int) -> Any:
    """The first video stream that is not a cover picture, limited to one thread; other streams are not read."""
    from av.stream import Disposition

    stills = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & stills]
    if not streams:
        raise BadSample(f"Clip {name} has no video stream.", reason="not_a_video")
    stream = streams[0]
    context = stream.codec_context
    codec = context.name if context else "nothing known"
    if codec not in CODECS:
        raise BadSample(
            f"Clip {name} is coded as {codec}, which is not read. Encode it as H.264, or as one of: "
            f"{', '.join(CODECS)}.",
            reason="not_a_video",
        )
    if context.width * context.height > max_pixels:
        raise BadSample(
            f"Clip {name} is {context.width} x {context.height}, more than data.max_pixels ({max_pixels}); it was "
            "not decoded. Shrink it before conversion, or raise data.max_pixels.",
            reason="too_large",
        )
    context.thread_count, context.thread_type = 1, "NONE"
    context.options = {"max_pixels": str(max_pixels)}
    return stream


def _packets(container: Any, stream: Any, name: str) -> list[Any]:
    """All packets of the stream in the order of decoding. Raises BadSample when the file was cut.

    Found by the index of an mp4, which lists every frame, and by the length in the header of HEADER_SECONDS. Other
    containers say neither: there the frames that are left count.
    """
    from av.stream import Discard

    cut, kind = None, container.format.name
    if kind in HEADER_SECONDS:
        packets, end, announced = [], 0.0, (container.duration or 0) / 1e6
        for packet in container.demux():
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is stream:
                packets.append(packet)
        # Headers are a little off at the best of times; a broken download is a lot shorter.
        if end < 0.9 * announced - 0.5:
            cut = f"it holds {end:.2f} of the {announced:.2f} s of its header"
    else:
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        packets = list(container.demux(stream))
        announced = len(stream.index_entries) if kind.startswith("mov") else 0
        left = sum(
            (packet.dts is not None or packet.size > 0) and not packet.is_corrupt for packet in packets
        )
        if left < announced:
            cut = f"it holds {left} of the {announced} frames of its index"
    if cut:
        raise BadSample(f"Clip {name} is cut: {cut}.", reason="decode")
    return [packet for packet in packets if packet.size and not packet.is_corrupt]


def _shown(packet: Any, codec: str) -> bool:
    """Whether a packet becomes a picture on screen: not those before an edit's start, nor VP8's hidden references."""
    if packet.is_discard:
        return False
    return codec != "vp8" or bool(bytes(packet)[0] & 0x10)


def _extension(container: Any, start: bytes) -> str:
    if WEBM in start:
        return "webm"
    if container.metadata.get("major_brand", "").startswith("qt"):
        return "mov"
    return CONTAINERS[container.format.name]


def _start(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content[:64]
    with open(content, "rb") as file:
        return file.read(64)


def _unopened(content: bytes | Path, name: str, error: Exception) -> BadSample:
    """Why FFmpeg did not open the clip: damaged, or something else altogether."""
    start = _start(content)
    if not start:
        return BadSample(f"Clip {name} is empty: 0 bytes.", reason="not_a_video")
    if any(start[place:].startswith(each) for place, known in FIRST_BYTES.items() for each in known):
        return BadSample(
            f"Clip {name} starts as a video file but cannot be opened ({error}): it is damaged or was cut, "
            "perhaps a broken download.",
            reason="decode",
        )
    return BadSample(
        f"Clip {name} is not a video of a known kind: it begins with {start[:16]!r}.",
        reason="not_a_video",
    )
