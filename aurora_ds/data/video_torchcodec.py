"""Clips by torchcodec, where it and FFmpeg's shared libraries are installed.

Frame numbers and times are those of aurora_ds.data.video_pyav; only the decoding is torchcodec's. Its pixels are the
same for clips of 8 bits a colour; those of 10 bits are converted by other rules of rounding and matrix and differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.video_pyav import Clip
from aurora_ds.errors import AuroraError


def pictures(content: bytes | Path, clip: Clip, numbers: Sequence[int]) -> np.ndarray:
    """uint8 (T, H, W, 3): the frames `numbers` of the clip, as shown. Raises BadSample."""
    decoder = _decoder_class()
    try:
        opened = decoder(
            content if isinstance(content, bytes) else str(content),
            stream_index=clip.stream_index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
        )
        # Just after a frame appears, so that no rounding of its time leads to the one before it.
        marks = [clip.shown_at(number) + 1e-4 for number in numbers]
        return opened.get_frames_played_at(marks).data.numpy()
    except (RuntimeError, ValueError, IndexError) as error:
        raise BadSample(
            f"Clip {clip.name} cannot be decoded by torchcodec: {str(error).splitlines()[0]}.",
            reason="decode",
        ) from error


@cache
def _decoder_class() -> Any:
    """torchcodec's VideoDecoder. Raises AuroraError where it is missing or cannot load FFmpeg."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise AuroraError(
            f"data.video.decoder=torchcodec, but torchcodec cannot be used here: {str(error).strip().splitlines()[0]} "
            "Install it together with FFmpeg's shared libraries and a torch of the matching version, or set "
            "data.video.decoder=pyav: the frames of 8-bit clips are the same, and it is as fast on a CPU."
        ) from error
    return VideoDecoder
