"""Published facts about faults: files known to be bad, GTZAN's fault-filtered split, replicas in the Ballroom set."""

from __future__ import annotations

from collections.abc import Iterable

_FMA = "https://github.com/mdeff/fma/wiki"
_GTZAN = "https://www.kaggle.com/datasets/andradaolteanu/gtzan-dataset-music-genre-classification"
_FMA_LARGE = (  # numbers of the tracks of `large` that FFmpeg and librosa could not open
    "2624 3284 8669 10116 11583 12838 13529 14116 14180 20814 22554 23429-23431 25173-25176 25180 29345-29346 29352 29356 "
    "33411 33413-33414 33417-33419 33425 35725 39363 41745 42986 43753 50594 50782 53668 54569 54582 61480 61822 63422 "
    "63997 72656 72980 73510 80553 82699 84503-84504 84522 84524 86656 86659 86661 86664 87057 90244-90245 90247-90248 "
    "90250 90252-90253 90442 90445 91206 92479 94052 94234 95253 96203 96207 96210 98105 98562 101265 101272 101275 102241 "
    "102243 102247 102249 102289 106409 106412 106415 106628 108920 109266 110236 115610 117441 127928 129207 129800 130328 "
    "130748 130751 131545 133641 133647 134887 140449-140472 142614 144518 144619 145056 146056 147419 147424 148786-148795 "
    "151920 155051"
)
KNOWN_BAD = {  # track id → what is wrong, and who says so
    "jazz.00054": f"GTZAN: does not start as a WAV file does, in the common copy; source: {_GTZAN}",
    "098565": f"FMA: 1.6 s long, not 30; source: {_FMA}",
    "098567": f"FMA: 0.5 s long, not 30; source: {_FMA}",
    "098569": f"FMA: 1.5 s long, not 30; source: {_FMA}",
    "099134": f"FMA: holds no audio; source: {_FMA}",
    "108925": f"FMA: holds no audio; source: {_FMA}",
    "133297": f"FMA: holds no audio; source: {_FMA}",
}

FAULT_FILTERED = {"train": 443, "val": 197, "test": 290}

# Kereliuk, Sturm and Larsen (2015): numbers of the tracks of each genre. The files of github.com/coreyker/dnn-mgr count all 1000
# tracks in alphabetical order from 1; torchaudio.datasets.gtzan holds the same lists as names.
_NUMBERS = {
    "train": {
        "blues": "29-49 73-97",
        "classical": "30-33 43-48 50-67 80-99",
        "country": "19-26 28-29 65-99",
        "disco": "5 15-20 22-37 39-45 47 49 53-54 56-57 59 61 70 73-74 89",
        "hiphop": "2-25 28-29 31-38 41-42 55-61 77-80",
        "jazz": "0-1 11-24 41 47-72",
        "metal": "2-3 5 21 24 35 46-57 59-66 69 71-72 79-80 84 86 89-99",
        "pop": "2-9 11-12 16-20 23-29 31-36 38-42 44 46 49-50 80 97-99",
        "reggae": "0-2 4 6 9 11-12 14-32 42-45 49-51 54-60 63 69",
        "rock": "0-9 16-26 57-70 91-99",
    },
    "val": {
        "blues": "0-11 50-60",
        "classical": "0-10 68-76",
        "country": "0-7 9-18 27 41-42 45 49",
        "disco": "0 2-4 6-14 46 48 52 67-68 72 75 90 95",
        "hiphop": "81-98",
        "jazz": "2-10 25-32",
        "metal": "0-1 6-11 16-20 36-37 68 76-77 81-82",
        "pop": "10 53 55 58-62 81 83-86",
        "reggae": "61-62 70 72 74 76-78 85 92-99",
        "rock": "38 49-56 71-85",
    },
    "test": {
        "blues": "12-28 61-72 98-99",
        "classical": "11-29 34-41 49 77-79",
        "country": "30-40 43-44 46-48 50-51 53-64",
        "disco": "1 21 58 62-66 69 76-88 91-94 96-97 99",
        "hiphop": "0 26-27 30 40 43-45 51-54 62-75 99",
        "jazz": "73-99",
        "metal": "12-15 22-23 25-33 38-39 67 70 73-75 78 83 85 87-88",
        "pop": "0-1 13-14 43 63-66 69-79 82 88-96",
        "reggae": "34-40 46-48 52-53 64-68 71 79 82-84 87-90",
        "rock": "10-15 27-37 39-48 86-90",
    },
}

# Sturm (2014), as listed by github.com/CPJKU/BallroomAnnotations: four exact replicas, then nine of the same recording.
BALLROOM_REPLICAS = (
    ("Albums-AnaBelen_Veneo-11", "Albums-Chrisanne2-12"),
    ("Albums-Fire-08", "Albums-Fire-09"),
    ("Albums-Latin_Jam2-05", "Albums-Latin_Jam2-13"),
    ("Albums-Secret_Garden-01", "Media-104705"),
    ("Albums-AnaBelen_Veneo-03", "Albums-AnaBelen_Veneo-15"),
    ("Albums-Ballroom_Magic-03", "Albums-Ballroom_Magic-18"),
    ("Albums-Latin_Jam-04", "Albums-Latin_Jam-13"),
    ("Albums-Latin_Jam-08", "Albums-Latin_Jam-14"),
    ("Albums-Latin_Jam-06", "Albums-Latin_Jam-15"),
    ("Albums-Latin_Jam2-02", "Albums-Latin_Jam2-14"),
    ("Albums-Latin_Jam2-07", "Albums-Latin_Jam2-15"),
    ("Albums-Latin_Jam3-02", "Media-103414"),
    ("Media-103402", "Media-103415"),
)


def known_bad(names: Iterable[str]) -> dict[str, str]:
    """Give those of some track ids that are known to be bad in the published data, with what is wrong and who says so."""
    large = {
        f"{number:06d}": "FMA: cannot be opened; source: https://github.com/mdeff/fma/issues/49" for number in _expand(_FMA_LARGE)
    }
    known = large | KNOWN_BAD
    return {name: known[name] for name in names if name in known}


def fault_filtered_splits() -> dict[str, str]:
    """Give the split of each of the 930 tracks in GTZAN's fault-filtered lists, by id as in `blues.00029`."""
    return {
        f"{genre}.{number:05d}": split
        for split, genres in _NUMBERS.items()
        for genre, ranges in genres.items()
        for number in _expand(ranges)
    }


def _expand(ranges: str) -> Iterable[int]:
    for part in ranges.split():
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
