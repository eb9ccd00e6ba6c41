"""Utterances of several clips, joined with silence between them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from .records import Clip, Waveform


def join_clips(
    clips: list[Clip], gaps_s: npt.NDArray[np.float64], *, sample_rate: int
) -> tuple[Waveform, str]:
    """One utterance of several clips with silence before, between and after.

    Parameters
    ----------
    clips : n clips
    gaps_s : (n + 1,)
        Seconds of digital silence before each clip and after the last.

    Returns
    -------
    waveform : float32, (samples,)
    text : the transcripts joined by spaces
    """
    parts = []
    for clip, gap in zip(clips, gaps_s, strict=False):
        parts += [np.zeros(round(gap * sample_rate), np.float32), clip.waveform]
    parts.append(np.zeros(round(gaps_s[-1] * sample_rate), np.float32))
    return np.concatenate(parts), " ".join(clip.text for clip in clips if clip.text)


def joined_sequences(
    clips: list[Clip],
    n_sequences: int,
    *,
    sample_rate: int,
    seed: int | Sequence[int],
    length: tuple[int, int],
) -> list[Clip]:
    """Sequences of clips of one speaker each, `length[0]` to `length[1]` clips long.

    Speakers take turns, so that each is heard about equally often; a speaker with few clips
    repeats them. Gaps are 0.05 to 0.3 s. No clips, no sequences.
    """
    if not clips:
        return []
    rng = np.random.default_rng(seed)
    by_speaker: dict[str, list[Clip]] = {}
    for clip in clips:
        by_speaker.setdefault(clip.speaker, []).append(clip)
    speakers = sorted(by_speaker)
    sequences = []
    for index in range(n_sequences):
        pool = by_speaker[speakers[index % len(speakers)]]
        n = int(rng.integers(length[0], length[1] + 1))
        chosen = [pool[i] for i in rng.integers(len(pool), size=n)]
        waveform, text = join_clips(chosen, rng.uniform(0.05, 0.3, n + 1), sample_rate=sample_rate)
        record = msgspec.structs.replace(
            chosen[0].record,
            audio=f"sequence-{index:04d}",
            text=text,
            duration_s=len(waveform) / sample_rate,
            sample_rate=sample_rate,
        )
        sequences.append(Clip(record, waveform))
    return sequences
