"""Augmentation: speed, rooms, noise, channel on the waveform; filters and masks on features.

Every augmentation is one small function; `AugmentSpec` says how often and how much, `Augmenter`
puts them in order.
"""

from .augmenter import Augmenter, Span, Utterance, at_speed
from .channel import band_limit, lose_packets, mu_law, overload, through_codec
from .features import mask_blocks, tilt_bands, warp_mels, warp_time
from .levels import active_level, scale_to_snr, speech_span
from .noise import NoiseBank, babble_track, colour_tracks, coloured_noise, recorded_tracks
from .rooms import (
    RoomBank,
    Shoebox,
    generated_rooms,
    random_room,
    recorded_response,
    room_response,
)
from .spec import AugmentSpec

__all__ = [
    "AugmentSpec",
    "Augmenter",
    "NoiseBank",
    "RoomBank",
    "Shoebox",
    "Span",
    "Utterance",
    "active_level",
    "at_speed",
    "babble_track",
    "band_limit",
    "colour_tracks",
    "coloured_noise",
    "generated_rooms",
    "lose_packets",
    "mask_blocks",
    "mu_law",
    "overload",
    "random_room",
    "recorded_response",
    "recorded_tracks",
    "room_response",
    "scale_to_snr",
    "speech_span",
    "through_codec",
    "tilt_bands",
    "warp_mels",
    "warp_time",
]
