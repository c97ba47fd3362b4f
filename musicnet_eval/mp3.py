"""How long an MP3 is, by its own frames. Layer 0.

A decoder takes an MP3's length from a Xing, Info or VBRI header in its first frame. Without one libsndfile guesses from the bit
rate of that frame and stops where the guess ends: of a file of variable bit rate it may leave out most.

Reference: ISO/IEC 11172-3 and 13818-3, section 2.4.1.3 (frame header).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_RATES = (44_100, 48_000, 32_000)
_KILOBITS = {  # MPEG 1 and MPEG 2, layer III; 0 (free format) and 15 (forbidden) end the walk
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_DIVISOR = {0: 4, 2: 2, 3: 1}  # version bits of MPEG 2.5, 2 and 1 → what divides the rate


class Frame(NamedTuple):
    """What a frame header says: bytes with padding, samples a channel, Hz."""

    size: int
    samples: int
    rate: int


def states_length(path: Path) -> bool:
    """Tell whether an MP3's first frame states the length of all."""
    with path.open("rb") as file:
        file.seek(_tag_size(file.read(10)))
        first = file.read(2048)
    return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))


def seconds(path: Path) -> float:
    """Count the seconds of an MP3 frame by frame, as far as whole frames follow each other."""
    content = path.read_bytes()
    at, found = _tag_size(content[:10]), 0.0
    while (frame := header(content[at : at + 4])) and at + frame.size <= len(content):
        found += frame.samples / frame.rate
        at += frame.size
    return found


def header(word: bytes) -> Frame | None:
    """Read the four bytes that begin a frame of layer III; None where they do not."""
    if len(word) < 4 or word[0] != 0xFF or word[1] & 0xE6 != 0xE2:
        return None
    version, code = word[1] >> 3 & 3, word[2] >> 2 & 3
    if version not in _DIVISOR or code == 3:
        return None
    rate = _RATES[code] // _DIVISOR[version]
    kilobits = _KILOBITS[version == 3][word[2] >> 4]
    samples = 1152 if version == 3 else 576
    return Frame(samples // 8 * kilobits * 1000 // rate + (word[2] >> 1 & 1), samples, rate) if kilobits else None


def _tag_size(head: bytes) -> int:
    """Give the bytes that an ID3v2 tag takes, header included."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
