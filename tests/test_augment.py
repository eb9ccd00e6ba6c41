"""Augmentation: what is asked for is measured in what comes out."""

from __future__ import annotations

from functools import cache

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.errors import DataError, SpecError
from edge_imputer.train.data import Augmenter, AugmentSpec, Clip, NoiseBank, RoomBank
from edge_imputer.train.data.augment import (
    active_level,
    at_speed,
    babble_track,
    band_limit,
    colour_tracks,
    coloured_noise,
    generated_rooms,
    lose_packets,
    mask_blocks,
    mu_law,
    overload,
    random_room,
    recorded_response,
    recorded_tracks,
    room_response,
    scale_to_snr,
    speech_span,
    through_codec,
    tilt_bands,
    warp_mels,
    warp_time,
)
from edge_imputer.train.data.augment.rooms import Shoebox, reverberation_time

from .speech_cases import RATE, clips, tone_burst

PLAIN = AugmentSpec(
    speeds=(1.0,),
    clips_joined=(1, 1),
    quiet=1.0,
    gain_db=(0.0, 0.0),
    edge_s=(0.0, 0.0),
    room=0.0,
    mel_warp=0.0,
    tilt=0.0,
    low_pass=0.0,
    masks=0,
)


def with_values(**values: object) -> AugmentSpec:
    return msgspec.structs.replace(PLAIN, **values)


def augmenter(**values: object) -> Augmenter:
    return Augmenter(with_values(**values), sample_rate=RATE)


def power(x: np.ndarray) -> float:
    return float(np.mean(x.astype(np.float64) ** 2))


def db(ratio: float) -> float:
    return 10 * float(np.log10(ratio))


def spectrum_db(x: np.ndarray, low_hz: float, high_hz: float) -> float:
    spectrum = np.abs(np.fft.rfft(x.astype(np.float64))) ** 2
    hz = np.fft.rfftfreq(len(x), 1 / RATE)
    return db(spectrum[(hz >= low_hz) & (hz < high_hz)].sum() + 1e-20)


# ---- levels and noise


@settings(max_examples=20, deadline=None)
@given(
    snr_db=st.floats(-5, 40),
    seconds=st.floats(0.4, 3.0),
    room=st.sampled_from([0.0, 1.0]),
    kinds=st.sampled_from([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]),
    gain_db=st.floats(-15, 12),
    seed=st.integers(0, 2**32),
)
def test_snr_is_the_one_asked_for_within_a_fifth_of_a_decibel(
    snr_db, seconds, room, kinds, gain_db, seed
):
    rng = np.random.default_rng(seed)
    noises = NoiseBank(colour_tracks(RATE, 0.0, 2.0), *other_noises())
    spec = with_values(
        snr_db=(snr_db, snr_db),
        gain_db=(gain_db, gain_db),
        quiet=0.0,
        room=room,
        noise_files=kinds[0],
        babble=kinds[1],
    )
    clip = clips(1, seconds)[0]
    clip = Clip(clip.record, clip.waveform * np.float32(0.9 / np.abs(clip.waveform).max()))
    mixed = Augmenter(spec, sample_rate=RATE, noises=noises).utterance([clip], rng)
    assert mixed.noise is not None
    measured = db(active_power(mixed.speech) / power(mixed.noise))
    assert measured == pytest.approx(snr_db, abs=0.2)
    # The utterance is these components, both louder or softer alike: nothing is cut off.
    whole = mixed.speech + mixed.noise
    gain = min(10 ** (gain_db / 20), 1 / np.abs(whole).max())
    np.testing.assert_allclose(mixed.waveform, gain * whole, atol=1e-5)
    assert np.abs(mixed.waveform).max() <= 1.0


def active_power(speech: np.ndarray) -> float:
    """The speech-active level, written down anew: loops, double precision."""
    frame = RATE // 50
    powers = [power(speech[i : i + frame]) for i in range(0, len(speech) - frame + 1, frame)]
    return float(np.mean([p for p in powers if p >= max(powers) * 10**-2.5]))


@cache
def other_noises() -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(3)
    recorded = [(rng.standard_normal(n) * 3000).astype(np.int16) for n in (5_000, 40_000)]
    voices = (tone_burst(1.0, rng) for _ in range(40))
    return recorded, [babble_track(voices, rng, sample_rate=RATE)]


def test_pauses_do_not_count_for_the_level_of_speech() -> None:
    speech = tone_burst(0.5, np.random.default_rng(0), lead_s=0.0)
    padded = np.concatenate([np.zeros(RATE, np.float32), speech, np.zeros(2 * RATE, np.float32)])
    alone, within = (active_level(x, sample_rate=RATE) for x in (speech, padded))
    assert db(within / alone) == pytest.approx(0.0, abs=0.05)
    assert db(power(speech) / power(padded)) > 8  # the mean of all of it would be off


def test_noise_where_nobody_speaks_has_a_level_of_its_own() -> None:
    quiet = augmenter(quiet=0.0, silence_db=(-50.0, -50.0))
    silence = quiet.utterance([], np.random.default_rng(0), window_s=1.0)
    assert len(silence.waveform) == RATE
    assert silence.text == ""
    assert silence.spans == ()
    assert db(power(silence.waveform)) == pytest.approx(-50.0, abs=0.1)


def test_noise_has_unit_power_and_falls_with_frequency() -> None:
    rng = np.random.default_rng(0)
    for exponent in (0.0, 1.0, 2.0):
        noise = coloured_noise(1 << 14, exponent, rng)
        assert np.mean(noise**2) == pytest.approx(1.0, rel=1e-3)
        spectrum = np.abs(np.fft.rfft(noise)) ** 2
        slope = np.polyfit(np.log(np.arange(8, 4096)), np.log(spectrum[8:4096]), 1)[0]
        assert slope == pytest.approx(-exponent, abs=0.1)


def test_the_banks_colours_have_nothing_below_hearing_and_never_repeat() -> None:
    bank = NoiseBank(colour_tracks(RATE, 2.0, 2.0))
    rng = np.random.default_rng(0)
    a, b = bank.piece("colour", 4 * RATE, rng), bank.piece("colour", 4 * RATE, rng)
    assert spectrum_db(a, 0, 10) < spectrum_db(a, 20, 100) - 10
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.5


def test_a_short_recording_goes_on_at_its_beginning() -> None:
    track = np.arange(100, dtype=np.int16)
    piece = NoiseBank((), [track]).piece("recorded", 250, np.random.default_rng(0))
    assert np.all(np.diff(piece) % 100 == 1)


def test_recordings_are_mapped_from_one_file(tmp_path) -> None:
    import pickle

    waveforms = [np.full(10, 0.5, np.float32), np.linspace(-1, 1, 30, dtype=np.float32)]
    tracks = recorded_tracks(iter(waveforms), tmp_path / "noise")
    again = pickle.loads(pickle.dumps(tracks))
    assert [len(t) for t in again] == [10, 30]
    np.testing.assert_array_equal(again[0], 32_000)
    np.testing.assert_array_equal(again[1], tracks[1])
    assert len(pickle.dumps(tracks)) < 1000
    with pytest.raises(DataError, match="recordings"):
        recorded_tracks(iter([]), tmp_path / "none")
    assert [p.name for p in tmp_path.iterdir()] == ["noise"]


def test_silent_noise_stays_silent() -> None:
    assert not scale_to_snr(np.zeros(10, np.float32), 1.0, 0.0).any()


# ---- rooms


@pytest.mark.parametrize("rt60_s", [0.15, 0.3, 0.45])
def test_rooms_reverberate_as_long_as_asked(rt60_s: float) -> None:
    measured = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        room = random_room(rng, (rt60_s, rt60_s), (0.5, 2.0))
        reflections = room_response(room, rng, sample_rate=RATE)
        reflections[0] -= 1.0
        measured.append(reverberation_time(reflections, sample_rate=RATE))
    assert np.median(measured) == pytest.approx(rt60_s, rel=0.15)


def test_the_first_reflection_comes_when_geometry_says() -> None:
    # Speaker and microphone 1 m apart, 1 m above the floor; the other walls are farther.
    room = Shoebox(
        np.array([8.0, 8.0, 6.0]), np.array([3.5, 4.0, 1.0]), np.array([4.5, 4.0, 1.0]), 0.3
    )
    response = room_response(room, np.random.default_rng(0), sample_rate=RATE)
    assert response[0] == pytest.approx(1.0, abs=0.02)
    expected = (np.sqrt(1.0 + 4.0) - 1.0) / 343.0 * RATE
    first = int(np.argmax(np.abs(response[10:]))) + 10
    assert first == pytest.approx(expected, abs=0.06 / 343 * RATE + 1)
    # As loud as the distance and one wall leave it; between two samples it has a part in each.
    heard = response[first - 1 : first + 2].sum()
    assert heard == pytest.approx(room.reflection / np.sqrt(5.0), rel=0.35)


def test_rooms_do_not_move_speech() -> None:
    bank = generated_rooms(RATE, 8, (0.1, 0.4), (0.3, 1.5))
    click = np.zeros(RATE, np.float32)
    click[5_000] = 1.0
    for room in range(len(bank)):
        heard = bank.convolve(click, room)
        assert not np.abs(heard[:4_999]).max() > 1e-5
        assert heard[5_000] == pytest.approx(1.0, abs=0.1)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9_000), length=st.integers(2, 300), seed=st.integers(0, 99))
def test_convolution_by_blocks_is_convolution(n: int, length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    response = rng.standard_normal(length).astype(np.float32)
    bank = RoomBank([response, np.ones(5, np.float32)], sample_rate=RATE)
    waveform = rng.standard_normal(n).astype(np.float32)
    expected = np.convolve(waveform, response)[:n]
    np.testing.assert_allclose(bank.convolve(waveform, 0), expected, atol=2e-4)
    np.testing.assert_allclose(
        bank.convolve(waveform, 1), np.convolve(waveform, np.ones(5))[:n], atol=2e-4
    )


def test_recorded_responses_start_at_their_direct_path() -> None:
    response = recorded_response(np.array([0.0, 0.01, -0.5, 0.25, 0.1], np.float32))
    np.testing.assert_allclose(response, [1.0, -0.5, -0.2])
    with pytest.raises(DataError, match="silence"):
        recorded_response(np.zeros(5, np.float32))


def test_room_banks_depend_on_their_seed_alone() -> None:
    few, many = (generated_rooms(RATE, n, (0.1, 0.2), (0.3, 1.0), seed=7) for n in (2, 4))
    assert few.lengths.tolist() == many.lengths[:2].tolist()


# ---- microphone and line


def test_overload_clips_where_asked() -> None:
    waveform = tone_burst(0.5, np.random.default_rng(0))
    clipped = overload(waveform, 6.0)
    assert np.abs(clipped).max() == pytest.approx(np.abs(waveform).max() * 10 ** (-6 / 20))
    quiet = np.abs(waveform) < np.abs(clipped).max() * 0.99
    np.testing.assert_array_equal(clipped[quiet], waveform[quiet])


def test_a_narrow_band_has_nothing_above_four_kilohertz() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * np.float32(0.1)
    narrow = band_limit(noise, sample_rate=RATE)
    assert len(narrow) == len(noise)
    assert spectrum_db(narrow, 4_100, 8_000) < spectrum_db(noise, 4_100, 8_000) - 50
    assert spectrum_db(narrow, 100, 3_500) == pytest.approx(spectrum_db(noise, 100, 3_500), abs=0.1)
    assert lag(noise, narrow) == 0


def lag(a: np.ndarray, b: np.ndarray, most: int = 400) -> int:
    """Samples by which b is late."""
    scores = {
        k: float(np.dot(a[most : -most - 1], b[most + k : len(b) - most - 1 + k]))
        for k in range(-most, most)
    }
    return max(scores, key=scores.__getitem__)


@pytest.mark.parametrize(
    ("codec", "least_db", "most_db"),
    [("mu-law", 30, 45), ("adpcm", 15, 40), ("gsm", 2, 25), ("vorbis", 5, 30)],
)
def test_codecs_lose_something_and_keep_time(codec: str, least_db: float, most_db: float) -> None:
    waveform = tone_burst(1.0, np.random.default_rng(2))
    heard = through_codec(waveform, codec, sample_rate=RATE)  # type: ignore[arg-type]
    assert heard.dtype == np.float32
    assert len(heard) == len(waveform)
    assert abs(lag(waveform, heard)) <= 8  # half a millisecond
    fidelity = db(power(waveform) / power(heard - waveform))
    assert least_db < fidelity < most_db


def test_mu_law_is_the_standards() -> None:
    # ITU-T G.711: silence stays silence, the step doubles every segment, full scale is 32124.
    levels = np.array([0, 8, -8, 40, 32_767, -32_768], np.float32) / 32_768
    np.testing.assert_array_equal(mu_law(levels) * 32_768, [0, 8, -8, 40, 32_124, -32_124])
    every = np.arange(-32_768, 32_768, dtype=np.float32) / 32_768
    assert len(np.unique(mu_law(every))) == 255  # 256 codes, and two zeros among them


def test_packets_are_lost_at_the_rate_asked_for() -> None:
    rng = np.random.default_rng(0)
    waveform = np.ones(RATE * 60, np.float32)
    lossy = lose_packets(waveform, 0.1, rng, sample_rate=RATE)
    packets = lossy.reshape(-1, RATE // 50)
    lost = packets[:, 0] < 1.0
    assert lost.mean() == pytest.approx(0.1, abs=0.02)
    assert np.all((packets == packets[:, :1]).all(axis=1))  # whole packets
    starts = lost[1:] & ~lost[:-1]
    assert lost.sum() / starts.sum() == pytest.approx(2.0, abs=0.4)  # in bursts
    after = np.flatnonzero(starts) + 1
    np.testing.assert_array_equal(packets[after, 0], 0.5)


def test_speed_changes_length_and_pitch() -> None:
    tone = np.sin(2 * np.pi * 400 * np.arange(RATE) / RATE).astype(np.float32)
    fast = at_speed(tone, 1.25, sample_rate=RATE)
    assert len(fast) == round(RATE / 1.25)
    peak = np.argmax(np.abs(np.fft.rfft(fast))) * RATE / len(fast)
    assert peak == pytest.approx(500, abs=2)
    assert at_speed(tone, 1.0, sample_rate=RATE) is tone


# ---- features


def test_warping_the_mels_moves_a_peak() -> None:
    x = np.zeros((3, 40), np.float32)
    x[:, 20] = 1.0
    np.testing.assert_allclose(warp_mels(x, 0.0), x)
    assert warp_mels(x, 0.25)[0].argmax() == 16
    flat = np.full((2, 40), 3.0, np.float32)
    np.testing.assert_allclose(warp_mels(flat, -0.1), flat, rtol=1e-6)


def test_tilt_is_a_smooth_filter() -> None:
    tilted = tilt_bands(np.zeros((2, 41), np.float32), np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(tilted[1], np.linspace(0, 4, 41), rtol=1e-6)


def test_time_warp_moves_one_frame_and_keeps_the_ends() -> None:
    x = np.arange(100, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    warped = warp_time(x, 40, 10)
    np.testing.assert_allclose(warped[[0, 50, 99], 0], [0, 40, 99], atol=1e-5)
    assert np.all(np.diff(warped[:, 0]) > 0)


@settings(max_examples=40, deadline=None)
@given(
    n_frames=st.integers(1, 60),
    n_masks=st.integers(0, 4),
    longest=st.integers(0, 30),
    axis=st.sampled_from([0, 1]),
    seed=st.integers(0, 999),
)
def test_masks_cover_whole_rows_and_no_more_than_asked(n_frames, n_masks, longest, axis, seed):
    x = np.ones((n_frames, 20), np.float32)
    mask_blocks(x, n_masks, longest, np.random.default_rng(seed), axis=axis, fill=-5.0)
    masked = (x == -5.0).all(axis=1 - axis)
    assert np.array_equal((x == -5.0).any(axis=1 - axis), masked)
    assert masked.sum() <= n_masks * longest


def test_masks_share_of_the_time_is_limited() -> None:
    limited = augmenter(masks=1, mask_time=50, mask_mel=0, mask_share=0.1, mask_fill="mean")
    for seed in range(30):
        x = limited.masked(np.ones((40, 8), np.float32), np.random.default_rng(seed))
        assert (x == 0.0).all(axis=1).sum() <= 4


# ---- the whole


def test_nothing_asked_for_changes_nothing() -> None:
    clip = clips(1)[0]
    assert not PLAIN.on_waveform
    plain = augmenter()
    utterance = plain.utterance([clip], np.random.default_rng(0))
    np.testing.assert_array_equal(utterance.waveform, clip.waveform)
    x = np.random.default_rng(0).standard_normal((20, 40)).astype(np.float32)
    np.testing.assert_array_equal(plain.features(x, np.random.default_rng(0)), x)
    np.testing.assert_array_equal(plain.masked(x, np.random.default_rng(0)), x)


ALL = {
    "quiet": 0.0,
    "room": 1.0,
    "clipping": 1.0,
    "band_limit": 1.0,
    "codec": 1.0,
    "packet_loss": 1.0,
    "speeds": (0.9, 1.1),
}


def test_everything_at_once_is_finite_and_repeatable() -> None:
    loud = augmenter(**ALL)
    for seed in range(8):
        a, b = (loud.utterance(clips(3), np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(a.waveform, b.waveform)
        assert a.waveform.dtype == np.float32
        assert np.isfinite(a.waveform).all()
        assert np.abs(a.waveform).max() <= 1.3


@pytest.mark.parametrize("name", ["room", "clipping", "band_limit", "codec", "packet_loss"])
def test_what_is_ramped_up_starts_at_nothing(name: str) -> None:
    clip = clips(1)[0]
    one = augmenter(**{name: 1.0}, packet_loss_rate=(0.5, 0.5))
    rng = np.random.default_rng
    weak, strong = (one.utterance([clip], rng(1), strength).waveform for strength in (0.0, 1.0))
    np.testing.assert_array_equal(weak, clip.waveform)
    assert not np.array_equal(strong, clip.waveform)


def test_joining_keeps_every_sample_and_says_where_it_is() -> None:
    three = clips(3)
    joined = augmenter(clips_joined=(3, 3), gap_s=(0.1, 0.1), edge_s=(0.2, 0.2))
    utterance = joined.utterance(three, np.random.default_rng(0))
    assert utterance.text == "one two three"
    assert len(utterance.waveform) == round((3 * 0.6 + 2 * 0.1 + 2 * 0.2) * RATE)
    start = round(0.9 * RATE)
    np.testing.assert_array_equal(
        utterance.waveform[start : start + len(three[1].waveform)], three[1].waveform
    )
    for (text, begin, end), clip in zip(utterance.spans, three, strict=True):
        assert text == clip.text
        spoken = utterance.waveform[round(begin * RATE) : round(end * RATE)]
        assert power(spoken) > 0.5 * power(clip.waveform)


def test_joining_stops_before_the_speech_gets_too_long() -> None:
    short = augmenter(longest_s=1.3, clips_joined=(4, 4), gap_s=(0.1, 0.1))
    utterance = short.utterance(clips(4), np.random.default_rng(0))  # clips of 0.6 s
    assert utterance.text == "one two"
    assert len(utterance.waveform) == round(1.3 * RATE)


@settings(max_examples=40, deadline=None)
@given(
    seconds=st.floats(0.3, 2.5), window_s=st.sampled_from([0.5, 1.0, 1.5]), seed=st.integers(0, 999)
)
def test_a_window_holds_all_of_the_speech_that_fits(seconds, window_s, seed) -> None:
    clip = clips(1, seconds)[0]
    found = augmenter().utterance([clip], np.random.default_rng(seed), window_s=window_s)
    assert len(found.waveform) == round(window_s * RATE)
    start, end = speech_span(clip.waveform, sample_rate=RATE)
    ((_, first, last),) = found.spans
    assert 0 <= first < last <= window_s
    if end - start <= window_s:
        assert last - first == pytest.approx(end - start, abs=0.011)
        kept = power(found.waveform) * len(found.waveform)
        assert kept >= 0.99 * power(clip.waveform) * len(clip.waveform) - 1e-6


def test_a_word_is_everywhere_in_its_window() -> None:
    one = augmenter()
    starts = [
        one.utterance(clips(1), np.random.default_rng(seed), window_s=1.5).spans[0][1]
        for seed in range(60)
    ]
    assert min(starts) < 0.15
    assert max(starts) > 0.85


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speeds": ()}, "speeds above 0"),
        ({"clips_joined": (3, 2)}, "clips_joined"),
        ({"room": 1.5}, "room from 0 to 1"),
        ({"snr_db": (10.0, 5.0)}, "snr_db as lowest, highest"),
        ({"noise_files": 0.7, "babble": 0.7}, "1 at most together"),
        ({"room_rt60_s": (0.0, 0.3)}, "room_rt60_s"),
        ({"codecs": ()}, "at least one of codecs"),
        ({"masks": -1}, "at least 0"),
        ({"edge_s": (-0.1, 0.2)}, "edge_s of at least 0"),
        ({"packet_loss_rate": (0.5, 1.0)}, "packet_loss_rate below 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        augmenter(**values)


@pytest.mark.parametrize("name", ["noise_files", "babble", "room_files"])
def test_recordings_that_are_wanted_must_be_there(name: str) -> None:
    with pytest.raises(SpecError, match=rf"augment\.{name}"):
        augmenter(**{name: 0.5, "room": 1.0, "quiet": 0.0})
