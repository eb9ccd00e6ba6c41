"""Small corpora of generated audio in the layouts that the real ones are published in.

File names, folders, headers and column names are those of the releases; only the audio is noise.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile as sf

RATE = 16_000
# Speakers of Speech Commands v0.02 by their official split: lines of its testing_list.txt, and
# of neither list. The hash must find the same.
TEST_SPEAKERS = ("bb05582b", "97f4c236", "f2e59fea", "fdb5155e", "dc75148d", "5c8af87a")


def sound(
    path: Path,
    seconds: float = 0.2,
    *,
    rate: int = RATE,
    seed: int | None = None,
    level: float = 0.3,
) -> Path:
    """Noise in a file, another one for each path unless a seed is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = sum(ord(c) * (i + 1) for i, c in enumerate(path.as_posix())) if seed is None else seed
    samples = np.random.default_rng(number).uniform(-level, level, round(seconds * rate))
    subtype = None if path.suffix == ".mp3" else "PCM_16"
    sf.write(path, samples.astype(np.float32), rate, subtype=subtype)
    return path


def speech_commands(root: Path, *, version: int = 2, lists: bool = True) -> Path:
    """Words, noises and lists, with speakers of each split by the official function."""
    from edge_imputer.train.data.adapters.speech_commands import WORDS_V1, WORDS_V2, which_set

    valid, test = [], []
    speakers = [f"{n:08x}" for n in range(24)] + list(TEST_SPEAKERS)
    for word in sorted(WORDS_V1 if version == 1 else WORDS_V2):
        chosen = speakers if word in ("yes", "no", "bed", "cat") else speakers[-4:]
        for speaker in chosen:
            path = sound(root / word / f"{speaker}_nohash_0.wav", 0.05)
            split = which_set(path.name)
            (valid if split == "valid" else test if split == "test" else []).append(
                f"{word}/{path.name}"
            )
    for name in ("running_tap", "white_noise"):
        sound(root / "_background_noise_" / f"{name}.wav", 20.0)
    (root / "_background_noise_" / "README.md").write_text("Noises.\n")
    if lists:
        (root / "validation_list.txt").write_text("\n".join(valid) + "\n")
        (root / "testing_list.txt").write_text("\n".join(test) + "\n")
    return root


LIBRISPEECH = {
    "train-clean-100": {"103": {"1240": ["CHAPTER ONE", "THAT HAD ITS SOURCE AWAY BACK"]}},
    "dev-clean": {"1272": {"128104": ["MISTER QUILTER'S MANNER"]}},
    "test-clean": {"1089": {"134686": ["HE HOPED THERE WOULD BE STEW FOR DINNER"]}},
}


def librispeech(root: Path) -> Path:
    """As the archives of openslr.org/12 unpack."""
    home = root / "LibriSpeech"
    lines = [";ID  |SEX| SUBSET           |MINUTES| NAME"]
    for subset, speakers in LIBRISPEECH.items():
        for speaker, chapters in speakers.items():
            lines.append(f"{speaker:<4} | F | {subset:<16} | 25.00 | A Reader")
            for chapter, texts in chapters.items():
                folder = home / subset / speaker / chapter
                names = [f"{speaker}-{chapter}-{i:04d}" for i in range(len(texts))]
                for name in names:
                    sound(folder / f"{name}.flac", 0.4)
                transcript = folder / f"{speaker}-{chapter}.trans.txt"
                transcript.write_text(
                    "".join(f"{n} {t}\n" for n, t in zip(names, texts, strict=True))
                )
    (home / "SPEAKERS.TXT").write_text("\n".join(lines) + "\n")
    return root


COMMON_VOICE_COLUMNS = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents "
    "variant locale segment"
).split()


def common_voice(root: Path) -> Path:
    """A language of a release: four TSV files, the clips as MP3 at 32 kHz, their durations."""
    people = {"train": "a" * 128, "dev": "b" * 128, "test": "c" * 128}
    rows: dict[str, list[tuple[str, str, str]]] = {name: [] for name in people}
    sentences = {
        "train": ["Bore da, Gymru!", 'Dywedodd "na".'],
        "dev": ["Dyma’r tŷ."],
        "test": ["Ble mae’r ci?"],
    }
    durations = ["clip\tduration[ms]"]
    number = 0
    for name, texts in sentences.items():
        for text in texts:
            number += 1
            file = f"common_voice_cy_{17_000_000 + number}.mp3"
            sound(root / "clips" / file, 1.0, rate=32_000)
            durations.append(f"{file}\t1000")
            rows[name].append((people[name], file, text))
    extra = f"common_voice_cy_{17_000_099}.mp3"
    sound(root / "clips" / extra, 1.0, rate=32_000)
    everything = [row for found in rows.values() for row in found]
    for name, found in {
        **rows,
        "validated": [*everything, ("d" * 128, extra, "Un arall.")],
    }.items():
        lines = ["\t".join(COMMON_VOICE_COLUMNS)]
        for person, file, text in found:
            row = dict.fromkeys(COMMON_VOICE_COLUMNS, "") | {
                "client_id": person, "path": file, "sentence": text, "locale": "cy",
            }  # fmt: skip
            lines.append("\t".join(row.values()))
        (root / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "clip_durations.tsv").write_text("\n".join(durations) + "\n")
    return root


def fsdd(root: Path) -> Path:
    """Free Spoken Digit Dataset, at 8 kHz."""
    for digit in (0, 7):
        for speaker in ("jackson", "yweweler"):
            for index in (0, 4, 5, 9, 10, 11):
                name = f"{digit}_{speaker}_{index}.wav"
                sound(root / "recordings" / name, 0.3, rate=8_000)
    return root


def words(root: Path, *, splits: bool = False) -> Path:
    """Word folders, alone or below split folders."""
    for top in ("train", "valid", "test") if splits else ("",):
        for word in ("lamp", "front_door", "_unknown_"):
            for i in range(8):
                sound(root / top / word / f"anna{i % 4}_{i}.wav", 0.2)
    return root


def wake_word(root: Path) -> Path:
    """Positives, negatives (one of them long) and near misses."""
    for i in range(6):
        sound(root / "positive" / f"take{i}.wav", 0.3)
        sound(root / "near_miss" / f"close{i}.ogg.flac", 0.3)
    sound(root / "negative" / "radio.flac", 3.0)
    sound(root / "negative" / "kitchen" / "fan.wav", 1.0)
    return root


def precise(root: Path) -> Path:
    """Mycroft Precise: training at the top, test below."""
    for top in ("", "test"):
        for i in range(2):
            sound(root / top / "wake-word" / f"hey.{i}.wav", 0.3)
            sound(root / top / "not-wake-word" / f"other.{i}.wav", 0.3)
    return root


def kaldi(root: Path) -> Path:
    """Data folders for train and dev: whole files in one, segments of a recording in the other."""
    train, dev = root / "data" / "train", root / "data" / "dev"
    long = sound(root / "audio" / "call.wav", 3.0)
    files = [sound(root / "audio" / f"utt{i}.flac", 0.5) for i in range(2)]
    for folder in (train, dev):
        folder.mkdir(parents=True)
    (train / "wav.scp").write_text("".join(f"ann-utt{i} {f}\n" for i, f in enumerate(files)))
    (train / "text").write_text("ann-utt0 GOOD MORNING\nann-utt1 GOOD NIGHT\n")
    (train / "utt2spk").write_text("ann-utt0 ann\nann-utt1 ann\n")
    (dev / "wav.scp").write_text(f"call {long}\n")
    (dev / "segments").write_text("bob-call-1 call 0.00 1.25\nbob-call-2 call 1.50 -1\n")
    (dev / "text").write_text("bob-call-1 YES\nbob-call-2 NO\n")
    (dev / "utt2spk").write_text("bob-call-1 bob\nbob-call-2 bob\n")
    return root / "data"


def nemo(root: Path) -> Path:
    """NeMo's manifests, one a split."""
    for split in ("train", "validation"):
        rows = []
        for i in range(2):
            path = sound(root / "wavs" / f"{split}{i}.wav", 0.5)
            rows.append({"audio_filepath": str(path), "duration": 0.5, "text": f"{split} {i}"})
        rows.append({"audio_filepath": f"wavs/{split}0.wav", "offset": 0.1, "duration": 0.2,
                     "text": "part", "speaker": 7})  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"{split}_manifest.json").write_text(lines)
    return root


def ours(root: Path, n: int = 6) -> Path:
    """A corpus folder of this project."""
    rows = []
    for i in range(n):
        sound(root / "audio" / f"{i}.flac", 0.3)
        rows.append({
            "audio": f"audio/{i}.flac", "text": f"word {i}", "speaker": f"s{i % 3}",
            "split": ("train", "valid", "test")[i % 3], "duration_s": 0.3, "sample_rate": RATE,
        })  # fmt: skip
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root
