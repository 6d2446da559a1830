"""Opening clips that come from strangers: PyAV (FFmpeg) reads their packets, nothing is decoded here.

Only containers and codecs of a list are opened, for one thread, and nothing but the given bytes is read: no protocol is
allowed, so playlists and references to other files lead nowhere. What cannot be used is a BadSample with a reason.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.mp4_index import check_index

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
# Their header says how long they are.
HEADER_SECONDS = ("matroska,webm", "avi", "flv")
MAX_PIXELS = 8192 * 8192
FIRST_BYTES = {
    0: (b"\x1aE\xdf\xa3", b"FLV", b"\x00\x00\x01\xba"),
    4: (b"ftyp", b"moov", b"mdat", b"free", b"wide"),
    8: (b"AVI ",),
}
WEBM = b"\x42\x82\x84webm"  # element DocType at the start of the file


@dataclass(frozen=True)
class OpenStream:
    """The video stream of an open clip, and all its packets in the order of decoding."""

    name: str
    stream: Any  # av.video.stream.VideoStream
    packets: list[Any]  # av.packet.Packet
    container: str  # a key of CONTAINERS
    extension: str  # that fits the content, in a shard


@contextmanager
def open_stream(content: bytes | Path, name: str, max_pixels: int) -> Iterator[OpenStream]:
    """The first video stream in these bytes (or this file) that is not a cover picture; closed at the end.

    Raises BadSample: not_a_video, too_large, decode.
    """
    import av

    allowed = {
        "format_whitelist": ",".join(CONTAINERS),
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": "none",
    }
    with ExitStack() as stack:
        file = io.BytesIO(content) if isinstance(content, bytes) else stack.enter_context(open(content, "rb"))
        start = file.read(64)
        check_index(file, name)
        try:
            container = stack.enter_context(
                av.open(file, "r", container_options=allowed, metadata_errors="ignore")
            )
            stream = _stream(container, name, max_pixels)
            packets = _packets(container, stream, name)
        # FFmpegError, and what Python says of places and streams that a damaged header points to.
        except (av.FFmpegError, OSError, ValueError, EOFError, IndexError) as error:
            raise _unopened(start, name, error) from error
        yield OpenStream(name, stream, packets, container.format.name, _extension(container, start))


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


def _extension(container: Any, start: bytes) -> str:
    if WEBM in start:
        return "webm"
    if container.metadata.get("major_brand", "").startswith("qt"):
        return "mov"
    return CONTAINERS[container.format.name]


def _unopened(start: bytes, name: str, error: Exception) -> BadSample:
    """Why FFmpeg did not open the clip: damaged, or something else altogether."""
    if not start:
        return BadSample(f"Clip {name} is empty: 0 bytes.", reason="not_a_video")
    if any(start[place:].startswith(each) for place, known in FIRST_BYTES.items() for each in known):
        return BadSample(
            f"Clip {name} starts as a video file but cannot be opened ({getattr(error, 'strerror', None) or error}): "
            "it is damaged or was cut, perhaps a broken download.",
            reason="decode",
        )
    return BadSample(
        f"Clip {name} is not a video of a known kind: it begins with {start[:16]!r}.",
        reason="not_a_video",
    )
