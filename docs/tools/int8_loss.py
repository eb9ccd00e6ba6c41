"""What a bundle's int8 model loses against its float one, on the same clips.

::

    python docs/tools/int8_loss.py build/demo/bundle --data train/digits --joined 300 --out x.json

Words named wrong, of a keyword model (the keyword with the highest score, the clip ending with as
much silence as the model is late); words written wrong, of one that writes. `--against` takes the
float model of another bundle, such as one that had as many updates in float. `--joined` makes
sequences of 1 to 4 clips of one speaker, as many as it says. Intervals are of a paired bootstrap
over clips.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_imputer.backends import load_backend, load_keyword_backend
from edge_imputer.bundle import Bundle
from edge_imputer.keyword_stream import KeywordStream
from edge_imputer.metrics import paired_difference
from edge_imputer.recognizer import Recognizer
from edge_imputer.specs import KeywordModelSpec
from edge_imputer.train.data import Clip, joined_sequences, load_clips, read_manifest
from edge_imputer.train.evaluation.error_rates import word_errors

FLOAT = "onnx-float"


def listener(bundle: Bundle, backend: str) -> Callable[[Clip], str]:
    """What a clip says, by a bundle in a runtime."""
    spec = bundle.spec
    rate = spec.features.sample_rate
    if not isinstance(spec, KeywordModelSpec):
        recognizer = Recognizer(bundle, backend=load_backend(bundle, backend))
        return lambda clip: recognizer.transcribe(clip.waveform, sample_rate=rate).text
    stream = KeywordStream(spec, load_keyword_backend(bundle, backend))
    silence = np.zeros(round(rate * spec.latency_s), np.float32)

    def name(clip: Clip) -> str:
        scores = stream.score(np.concatenate([clip.waveform, silence]))
        return stream.keywords[int(scores.max(0).argmax())]

    return name


def summed_errors(bundles: list[Path], backend: str, clips: list[Clip]) -> np.ndarray:
    """Word errors of every clip, over all bundles, (n_clips,)."""
    references = [clip.text for clip in clips]
    found = []
    for path in bundles:
        listen = listener(Bundle.load(path), backend)
        found.append(word_errors(references, [listen(clip) for clip in clips]).counts)
    return np.sum(found, axis=0)


def main() -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundles", type=Path, nargs="+", help="of several seeds: pooled by clip")
    parser.add_argument(
        "--against", type=Path, nargs="+", help="bundles whose float models are compared with"
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="corpus folders")
    parser.add_argument("--split", default="test")
    parser.add_argument("--joined", type=int, default=0, help="sequences to make of the clips")
    parser.add_argument("--backend", default="litert", help="that runs the int8 model")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    ours, theirs = options.bundles, options.against or options.bundles
    if len(ours) != len(theirs):
        parser.error(f"expected a bundle --against each of {len(ours)}, got {len(theirs)}")
    bundle = Bundle.load(ours[0])
    rate = bundle.spec.features.sample_rate
    clips = []
    for folder in options.data:
        clips += load_clips(folder, read_manifest(folder), options.split, sample_rate=rate)
    if isinstance(bundle.spec, KeywordModelSpec):
        clips = [clip for clip in clips if clip.text in bundle.spec.keywords]
    if options.joined:
        clips = joined_sequences(clips, options.joined, sample_rate=rate, seed=0, length=(1, 4))
    int8 = summed_errors(ours, options.backend, clips)
    floats = summed_errors(theirs, FLOAT, clips)
    words = np.array([len(clip.text.split()) for clip in clips]) * len(ours)
    loss = paired_difference(int8, floats, words)
    row = {
        "data": ", ".join(f"{folder.name} {options.split}" for folder in options.data),
        "n": len(clips),
        "words": int(words.sum()) // len(ours),
        "seeds": len(ours),
        "float_wer": float(floats.sum() / words.sum()),
        "int8_wer": float(int8.sum() / words.sum()),
        "loss": loss.interval.value,
        "loss_low": loss.interval.low,
        "loss_high": loss.interval.high,
    }
    options.out.write_text(json.dumps({"rows": [row]}, indent=2) + "\n", "utf-8")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
