"""Find recordings that sound alike, wherever one lies inside the other: robust fingerprints, an index, and a test of agreement.

A fingerprint is a row of 32-bit words, 86 a second: one bit for each pair of neighbouring frequency bands, set when the
difference of their energies grows from a frame to the next. Two things differ from Haitsma and Kalker. A bit must clear a floor,
relative to the frame's energy, so that bands that hold only a codec's noise stay 0; a word that is 0 says nothing (silence, a
steady tone) and is left out of everything. And agreement is corrected for chance (Cohen's kappa with each band's own share of
ones), because such bits are rarer than one in two, and because two tones that merely fade alike must not count as alike. Between
different pieces of the embedded data, at any lag, kappa was 0 with a standard deviation of 0.03; a match needs 0.6.

The index is a hash table of words: tracks that share a word at the same lag vote for it. A word is linked to at most `NEIGHBOURS`
further tracks, so that N tracks cost about O(N); copies beyond that are still joined in a chain. What has enough votes is tested
over the whole overlap. Changes of speed or pitch, and overlaps shorter than 2.7 s, are not found.

Reference:
    J. Haitsma, T. Kalker: A Highly Robust Audio Fingerprinting System, ISMIR 2002; J. Cohen: A Coefficient of Agreement for
    Nominal Scales, Educational and Psychological Measurement 20(1), 1960.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Floats = NDArray[np.float32]

RATE = 5500  # Hz; the bands end at 2 kHz, so that a telephone recording still has all of them
FRAME, HOP = 2048, 64  # samples: 0.37 s and 11.6 ms; so much overlap makes any shift of the samples matter little
LOW, HIGH, BANDS = 300.0, 2000.0, 33  # Hz; logarithmic, about a semitone each
FLOOR = 2e-4  # of a frame's energy: smaller differences are noise
QUIET = 1e-6  # of the loudest frame's energy (-60 dB): quieter frames say nothing

SAMPLED = 4  # one word in so many is indexed; which, the word itself says, alike in every track
NEIGHBOURS = 8
SHARD = 500_000  # indexed words whose votes are counted at once, which bounds the memory
VOTES = 3  # different words that two tracks must share at one lag before they are compared
LAGS = 3  # lags tried for each two tracks, those of most votes
AGREEMENT = 0.6  # least kappa of a match
SHORTEST = 200  # least words that speak in an overlap: 2.7 s
EVIDENCE = 800  # least bits that would disagree by chance

_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)


class Match(NamedTuple):
    """Two recordings that sound alike where they overlap.

    Args:
        left: Index of the one.
        right: Index of the other.
        lag: Where the right one begins on the left one's clock, seconds; negative when it began earlier.
        agreement: Cohen's kappa of the fingerprints' bits over the overlap, 1 when equal.
    """

    left: int
    right: int
    lag: float
    agreement: float


# --- one recording ------------------------------------------------------------------------------------------------------------


def words(audio: Floats) -> Words:
    """Make the fingerprint of a recording.

    Args:
        audio: Samples at `RATE`.

    Shape:
        audio: `[T]`.
        output: `[N]` uint32, N = (T - FRAME) // HOP; none where that is less than 1.
    """
    if len(audio) < FRAME + HOP:
        return np.zeros(0, dtype=np.uint32)
    energy = _band_energy(audio)
    total = energy[1:].sum(axis=1)
    change = np.diff(energy[:, :-1] - energy[:, 1:], axis=0)
    bits = (change > FLOOR * total[:, None]) & (total > QUIET * total.max())[:, None]
    packed: Words = np.packbits(bits, axis=1, bitorder="little").view("<u4").ravel()
    return packed


def _band_energy(audio: Floats) -> Floats:
    from scipy.fft import rfft  # type: ignore[import-untyped]

    edges = np.round(np.geomspace(LOW, HIGH, BANDS + 1) * FRAME / RATE).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(audio, FRAME)[::HOP]
    window = np.hanning(FRAME).astype(np.float32)
    energy = np.empty((len(frames), BANDS), dtype=np.float32)
    for start in range(0, len(frames), 256):  # some frames at a time: an hour's overlapping frames would fill the memory
        spectrum = rfft(frames[start : start + 256] * window, axis=1)[:, : edges[-1]]
        power = spectrum.real**2 + spectrum.imag**2
        energy[start : start + 256] = np.add.reduceat(power, edges[:-1], axis=1)
    return energy


# --- many recordings ----------------------------------------------------------------------------------------------------------


def matches(fingerprints: Sequence[Words]) -> list[Match]:
    """Find the pairs that sound alike, best agreement first; at most one match a pair.

    Args:
        fingerprints: One a recording, fewer than 2**20 of them.
    """
    found = []
    for left, right, lags in _candidates(fingerprints):
        near = sorted({lag + step for lag in lags for step in (-1, 0, 1)})  # a shift by a part of a frame splits the votes
        best, lag = max((agreement(fingerprints[left], fingerprints[right], lag), -abs(lag), lag) for lag in near)[::2]
        if best >= AGREEMENT:
            found.append(Match(left, right, lag * HOP / RATE, round(best, 4)))
    return sorted(found, key=lambda match: -match.agreement)


def agreement(left: Words, right: Words, lag: int) -> float:
    """Give Cohen's kappa of two fingerprints' bits over their overlap; 0 where that is too short or says too little.

    Args:
        left: The one.
        right: The other.
        lag: Words by which the right one begins later.
    """
    a, b = left[max(0, lag) :], right[max(0, -lag) :]
    length = min(len(a), len(b))
    a, b = a[:length], b[:length]
    speaking = (a != 0) & (b != 0)
    a, b = a[speaking], b[speaking]
    if len(a) < SHORTEST:
        return 0.0
    shares = [np.unpackbits(one.astype("<u4").view(np.uint8), bitorder="little").reshape(-1, 32).mean(axis=0) for one in (a, b)]
    expected = len(a) * float((shares[0] * (1 - shares[1]) + shares[1] * (1 - shares[0])).sum())
    if expected < EVIDENCE:
        return 0.0
    differing = a ^ b
    observed = float(_ONES[differing & 0xFFFF].sum(dtype=np.int64) + _ONES[differing >> 16].sum(dtype=np.int64))
    return 1 - observed / expected


def _candidates(fingerprints: Sequence[Words]) -> Iterator[tuple[int, int, list[int]]]:
    """Give the pairs with enough votes for a lag, each with its lags of most votes, most first."""
    word, track, time = _index(fingerprints)
    shards = 1 + len(word) // SHARD
    for shard in range(shards):
        votes = [np.zeros(0, dtype=np.int64)]
        ours = np.flatnonzero(track % shards == shard)
        for step in range(1, NEIGHBOURS + 1):
            ours = ours[ours < len(word) - step]
            here = ours[word[ours] == word[ours + step]]
            left, right = track[here].astype(np.int64), track[here + step].astype(np.int64)
            # One integer a vote, (left, right, lag), since numpy counts equal integers fast.
            votes.append((left << 43) | (right << 23) | (time[here] - time[here + step] + (1 << 22)))
        keys, number = np.unique(np.concatenate(votes), return_counts=True)
        keys, number = keys[number >= VOTES], number[number >= VOTES]
        lags: dict[tuple[int, int], list[int]] = defaultdict(list)
        for key in keys[np.argsort(-number, kind="stable")].tolist():
            lags[key >> 43, key >> 23 & 0xFFFFF].append((key & 0x7FFFFF) - (1 << 22))
        yield from ((left, right, found[:LAGS]) for (left, right), found in lags.items())


def _index(fingerprints: Sequence[Words]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Sort the sampled words of all tracks, each where it first occurs in its track: words, tracks, times."""
    parts = [(np.zeros(0, dtype=np.uint32), np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32))]
    for number, fingerprint in enumerate(fingerprints):
        word, time = np.unique(fingerprint, return_index=True)
        # A multiplicative hash: neighbouring words fall on both sides of the sampling.
        chosen = (((word * np.uint32(2654435761)) >> np.uint32(16)) % SAMPLED == 0) & (word != 0)
        word, time = word[chosen], time[chosen].astype(np.int32)
        parts.append((word, np.full(len(word), number, dtype=np.int32), time))
    words_, tracks, times = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((tracks, words_))
    return words_[order], tracks[order], times[order]
