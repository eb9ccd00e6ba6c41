"""The augmenter of a run, with the noises and rooms that were recorded for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from edge_imputer.audio import read_audio, resample
from edge_imputer.errors import AudioError, DataError

from ..data import Augmenter, NoiseBank, RoomBank, Waveform
from ..data.augment import babble_track, colour_tracks, recorded_response, recorded_tracks
from ..data.records import NOISE_LABEL
from ..recipe import Recipe
from .sources import Material

log = logging.getLogger(__name__)

AUDIO_ENDINGS = {".wav", ".flac", ".ogg"}
BABBLE_TRACKS = 4
BABBLE_CLIPS = 400  # of the training clips, for each track, at most
NOISES_NAME = "noises.int16"


def make_augmenter(train: Material, recipe: Recipe, out: Path) -> Augmenter:
    """The recipe's augmenter.

    Noises are the corpus' own (clips labelled ``_noise_``) and those below ``data.noises``; babble
    is made of training clips; room responses are those below ``data.rooms``. A clip of the corpus
    that cannot be decoded is left out with a warning.

    Raises
    ------
    DataError
        A folder without audio, or audio that cannot be read.
    SpecError
        The recipe wants noises or rooms from files, and there are none.
    """
    spec, rate = recipe.augment, recipe.features.sample_rate
    recorded: Iterable[Waveform] = ()
    n_noises = 0
    if spec.noise_files > 0:
        own = _own_noises(train)
        files = _files(recipe.data.noises, "data.noises")
        n_noises = len(own) + len(files)
        recorded = _noises(own, train, files, rate)
    noises = None
    if n_noises or spec.babble > 0:
        noises = NoiseBank(
            colour_tracks(rate, *spec.noise_colour),
            recorded_tracks(recorded, out / NOISES_NAME) if n_noises else (),
            _babble(train, recipe.run.seed, rate) if spec.babble > 0 else (),
        )
    rooms = None
    if spec.room * spec.room_files > 0 and recipe.data.rooms:
        files = _files(recipe.data.rooms, "data.rooms")
        responses = [recorded_response(_read(path, rate)) for path in files]
        rooms = RoomBank(responses, sample_rate=rate)
    return Augmenter(spec, sample_rate=rate, noises=noises, recorded_rooms=rooms)


def _own_noises(train: Material) -> list[int]:
    """Rows of the corpus' noises."""
    labels, codes = train.column("label")
    if NOISE_LABEL not in labels:
        return []
    rows: list[int] = np.flatnonzero(codes == labels.index(NOISE_LABEL)).tolist()
    return rows


def _noises(rows: list[int], train: Material, files: list[Path], rate: int) -> Iterator[Waveform]:
    yield from _decoded(rows, train, set())
    for path in files:
        yield _read(path, rate)


def _decoded(rows: Iterable[int], train: Material, bad: set[int]) -> Iterator[Waveform]:
    """Clips of the corpus; rows that cannot be decoded are said once, and put into `bad`."""
    for row in rows:
        try:
            yield train.source.clip(row).waveform
        except AudioError as error:
            if row not in bad:
                log.warning("not mixed in: %s: %s", train.source.name(row), error)
            bad.add(row)


def _babble(
    train: Material, seed: int, rate: int
) -> list[np.ndarray[tuple[int], np.dtype[np.int16]]]:
    """Several voices at once, of training clips in another order for every track."""
    noises = set(_own_noises(train))
    bad: set[int] = set()
    tracks = []
    for number in range(BABBLE_TRACKS):
        rng = np.random.default_rng((seed, 0xBABB1E, number))
        rows = [row for row in rng.permutation(len(train)).tolist() if row not in noises]
        clips = _decoded(rows[:BABBLE_CLIPS], train, bad)
        tracks.append(babble_track(clips, rng, sample_rate=rate))
    return tracks


def _files(folder: str | None, key: str) -> list[Path]:
    """Audio files below a folder."""
    if folder is None:
        return []
    found = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in AUDIO_ENDINGS)
    if not found:
        endings = ", ".join(sorted(AUDIO_ENDINGS))
        raise DataError(f"{key}: expected a folder with audio ({endings}), found none in {folder}")
    return found


def _read(path: Path, rate: int) -> Waveform:
    try:
        waveform, from_rate = read_audio(path)
    except AudioError as error:
        raise DataError(f"a recording to augment with cannot be read: {error}") from error
    return resample(waveform, from_rate=from_rate, to_rate=rate)
