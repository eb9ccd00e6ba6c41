"""The study of active learning: hidden labels, rounds that can be interrupted, what is reported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile as sf
import torch
from typer.testing import CliRunner

from edge_imputer.cli.main import app
from edge_imputer.errors import DataError, SpecError
from edge_imputer.tokens import token_spec_of
from edge_imputer.train.active import study
from edge_imputer.train.active.study import StudyPlan, hours_for, run_study, with_vocabulary
from edge_imputer.train.active.study_corpus import ROW, StudyCorpus
from edge_imputer.train.active.study_journal import BASE
from edge_imputer.train.active.study_measure import count_errors
from edge_imputer.train.data import ClipRecord, Manifest, write_manifest
from edge_imputer.train.data.batches import Example, collate
from edge_imputer.train.data.corpus import read_clip
from edge_imputer.train.data.features import Featurizer
from edge_imputer.train.tasks import KeywordTask, Task, build_task

from .training_cases import RATE, SIZES, TINY, WORDS, tiny_recipe, tone_word
from .training_cases import write_corpus as write_training_corpus

SECOND_H = 1 / 3600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words of tones in train, valid and test, and a noise to mix in."""
    folder = write_training_corpus(tmp_path_factory.mktemp("tones"), per_word=5)
    rng = np.random.default_rng(9)
    records = list(Manifest.open(folder))
    for index, word in enumerate((*WORDS, "ab", "ba")):
        waveform = tone_word(word, rng)
        sf.write(folder / f"test-{index}.wav", waveform, RATE, subtype="PCM_16")
        label = word if index < 3 else "_unknown_"
        seconds = len(waveform) / RATE
        records.append(record(f"test-{index}.wav", seconds, word, label, "test"))
    write_manifest(folder, records)
    return folder


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noises")
    rng = np.random.default_rng(1)
    sf.write(folder / "rain.wav", rng.uniform(-0.2, 0.2, 5 * RATE), RATE, subtype="PCM_16")
    sf.write(folder / "click.wav", rng.uniform(-0.2, 0.2, RATE // 5), RATE, subtype="PCM_16")
    rows = [("rain.wav", 5.0), ("click.wav", 0.2)]
    write_manifest(folder, [record(name, s, None, "_noise_", "train") for name, s in rows])
    return folder


def record(audio: str, seconds: float, text: Any, label: str, split: str) -> ClipRecord:
    row = {"audio": audio, "text": text, "label": label, "speaker": "cyd", "split": split}
    return msgspec.convert({**row, "duration_s": seconds, "sample_rate": RATE}, ClipRecord)


# ------------------------------------------------------------------ corpus


def test_a_pool_says_nothing_of_what_is_said(folder: Path, noises: Path, tmp_path: Path) -> None:
    corpus = StudyCorpus(folder, words=False, noises=noises, noise_share=0.3, seed=1)
    assert corpus.n_clips == 30
    assert len(corpus) > 30
    assert len(corpus.test) == 5
    noise_s = corpus.durations[30:].sum()
    assert noise_s / corpus.durations.sum() == pytest.approx(0.3, abs=0.05)
    file = tmp_path / "pool" / "pool.jsonl"
    labelled = [0, 3, 31]
    assert corpus.write_pool(file, labelled) == len(corpus) - 3
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row[ROW] for row in rows] == [r for r in range(len(corpus)) if r not in labelled]
    for row in rows:
        assert row["text"] is None
        assert row["label"] is None
        assert row["speaker"] == "unknown"
    pool = Manifest.open(file)
    waveforms = [read_clip(pool.folder, r, RATE) for r in pool]
    assert all(len(w) for w in waveforms)
    starts = {r.offset_s for r in pool if r.audio.endswith("rain.wav")}
    assert len(starts) > 3
    assert not any(r.audio.endswith("click.wav") for r in pool)

    corpus.write_labelled(tmp_path / "labelled", labelled)
    written = list(Manifest.open(tmp_path / "labelled"))
    train = [r for r in written if r.split == "train" and r.label != "_noise_"]
    assert [r.text for r in train] == ["ab", "ab", ""]
    assert train[2].label == "_silence_"
    assert sum(r.split == "valid" for r in written) == 6
    assert sum(r.label == "_noise_" for r in written) == 1
    assert not any(r.split == "test" for r in written)


def test_noises_need_no_speaker(folder: Path, noises: Path, tmp_path: Path) -> None:
    """As in collections of recorded noise, where nobody speaks."""
    nobody = []
    for record in Manifest.open(noises):
        there = {**msgspec.to_builtins(record), "audio": str(noises / record.audio)}
        nobody.append(msgspec.json.encode({**there, "speaker": None}))
    (tmp_path / "manifest.jsonl").write_bytes(b"\n".join(nobody) + b"\n")
    theirs = StudyCorpus(folder, words=False, noises=tmp_path, noise_share=0.3, seed=1)
    ours = StudyCorpus(folder, words=False, noises=noises, noise_share=0.3, seed=1)
    assert theirs.durations.tolist() == ours.durations.tolist()


def test_bases_differ_by_seed_and_keep_to_their_hours(folder: Path, noises: Path) -> None:
    corpus = StudyCorpus(folder, words=False, noises=noises, noise_share=0.3)
    first, again, other = (corpus.base(seed, 4 * SECOND_H) for seed in (1, 1, 2))
    assert first == again != other
    assert max(first) < corpus.n_clips
    assert 3 < corpus.durations[first].sum() <= 4
    with pytest.raises(DataError, match=r"a base that holds a clip, got 0\.1 s"):
        corpus.base(1, 0.1 * SECOND_H)
    plain = StudyCorpus(folder, words=False)
    assert len(plain) == 30
    assert plain.identity != corpus.identity
    assert plain.characters() == "ab"
    assert StudyCorpus(folder, words=True).keywords() == ("ab", "abba", "ba")


def test_corpora_that_cannot_be_studied_are_refused(folder: Path, noises: Path, tmp_path) -> None:
    rows = [r for r in Manifest.open(folder) if r.split != "test"]
    write_manifest(tmp_path, rows)
    with pytest.raises(DataError, match="transcribed clips of the splits train and test, got 30"):
        StudyCorpus(tmp_path, words=False)
    short = tmp_path / "short"
    short.mkdir()
    write_manifest(short, [r for r in Manifest.open(noises) if r.duration_s < 0.5])
    with pytest.raises(DataError, match=r"recordings of 0\.5 s or more"):
        StudyCorpus(folder, words=False, noises=short, noise_share=0.1)


# ------------------------------------------------------------------ rounds


class Killed(Exception):
    """What ends a process anywhere."""


class Fakes:
    """Training, choosing and measuring that are quick, and end when they are told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = 10_000
        self.trained: list[str] = []
        self.before: list[Any] = []
        self.used: list[str] = []
        patch.setattr(study, "train", self.train)
        patch.setattr(study, "Selection", self.selection)
        patch.setattr(study, "open_model", self.load)
        patch.setattr(study, "read_initial", self.read)
        patch.setattr(study, "count_errors", self.count)

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def train(self, material: Any, _valid: Any, recipe: Any, out: Path, **keys: Any) -> Path:
        self.step()
        clips = sorted(r.audio for r in material.records())
        before = keys["init_from"]
        self.before.append(before)
        content = [clips, recipe.run.seed, recipe.run.updates, before and before.read_text()]
        out.mkdir(parents=True, exist_ok=True)
        self.trained.append(out.parent.name)
        path = out / "last.ckpt"
        path.write_text(hashlib.sha256(repr(content).encode()).hexdigest())
        self.step()
        return path

    def load(self, path: Path) -> Any:
        return type("Loaded", (), {"task": path.read_text()})

    def read(self, path: Path) -> Any:
        return type("Initial", (), {"sha256": path.read_text()})

    def count(self, task: str, clips: Any) -> tuple[list[int], list[int]]:
        self.step()
        numbers = bytes.fromhex(task)[: len(clips)]
        return [number % 5 for number in numbers], [5] * len(clips)

    def selection(self, options: Any) -> Any:
        self.step()
        self.used.append(options.strategy)
        assert 0 < options.budget_s < 5
        pool = [json.loads(line) for line in options.pool.read_text().splitlines()]
        key = options.model.read_text() + options.strategy
        pool.sort(key=lambda row: hashlib.sha256(f"{key}{row[ROW]}".encode()).hexdigest())
        spent, chosen = 0.0, []
        for row in pool:
            if spent + row["duration_s"] <= options.budget_s:
                spent += row["duration_s"]
                chosen.append(row)

        class Chosen:
            def score(self, shard: Any) -> None:
                options.out.parent.mkdir(parents=True, exist_ok=True)

            def select(self) -> None:
                options.out.write_text("".join(json.dumps(row) + "\n" for row in chosen))

        return Chosen()


PLAN = StudyPlan(
    strategies=("random", "egl"),
    seeds=(1, 2),
    base_hours=3 * SECOND_H,
    round_hours=2.5 * SECOND_H,
    rounds=2,
)


@pytest.mark.parametrize("continued", [0, 7])
def test_a_study_that_was_killed_anywhere_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, continued: int
) -> None:
    fakes = Fakes(monkeypatch)
    corpus, recipe = StudyCorpus(folder, words=False), tiny_recipe("digits")
    plan = msgspec.structs.replace(PLAN, continued=continued, seeds=(3,))
    whole = run_study(recipe, corpus, plan, tmp_path / "whole")
    n_steps = 10_000 - fakes.left
    assert fakes.used == ["random", "random", "egl", "egl"]
    assert len(fakes.trained) == 1 + 2 * 2
    for steps in range(1, n_steps, 3):
        out = tmp_path / str(steps)
        fakes.left = steps
        with pytest.raises(Killed):
            run_study(recipe, corpus, plan, out)
        fakes.left = 10_000
        assert run_study(recipe, corpus, plan, out) == whole
    said = fakes.left
    assert run_study(recipe, corpus, plan, tmp_path / "whole") == whole
    assert fakes.left == said  # nothing was done again
    assert not any((tmp_path / "whole" / "runs").iterdir())


def test_what_a_study_measures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fakes(monkeypatch)
    corpus = StudyCorpus(folder, words=False)
    lines: list[str] = []
    found = run_study(tiny_recipe("digits"), corpus, PLAN, tmp_path, say=lines.append)
    names = [(m.strategy, m.seed, m.round) for m in found]
    one = [(BASE, 0), ("random", 1), ("random", 2), ("egl", 1), ("egl", 2)]
    assert names == [(name, seed, n) for seed in (1, 2) for name, n in one]
    by_name = {(m.strategy, m.seed, m.round): m for m in found}
    for (strategy, seed, number), measured in by_name.items():
        assert len(set(measured.rows)) == len(measured.rows)
        seconds = corpus.durations[list(measured.rows)].sum()
        assert measured.hours == pytest.approx(seconds / 3600, abs=1e-6)
        assert seconds <= 3 + 2.5 * number
        assert seconds > 3 + 2.5 * number - 0.7  # what no clip is short enough for
        if number:
            before = by_name[(strategy if number > 1 else BASE, seed, number - 1)]
            assert measured.rows[: len(before.rows)] == before.rows
    assert any("seed 2, egl, round 2: training on 0.00 h" in line for line in lines)
    with pytest.raises(DataError, match="is of another study"):
        run_study(tiny_recipe("digits", "run.updates=3"), corpus, PLAN, tmp_path)
    more = msgspec.structs.replace(PLAN, rounds=9)
    with pytest.raises(SpecError, match="expected hours to label within the corpus"):
        run_study(tiny_recipe("digits"), corpus, more, tmp_path / "more")


@pytest.mark.parametrize("continued", [0, 7])
def test_a_study_begins_from_a_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, continued: int
) -> None:
    """It chooses first where nothing is labelled, and every training begins from it."""
    fakes = Fakes(monkeypatch)
    corpus, recipe = StudyCorpus(folder, words=False), tiny_recipe("digits")
    mine, other = tmp_path / "mine.ckpt", tmp_path / "other.ckpt"
    mine.write_text("11" * 32)
    other.write_text("22" * 32)
    plan = msgspec.structs.replace(PLAN, base_hours=0.0, seeds=(1,), continued=continued)
    found = run_study(recipe, corpus, plan, tmp_path / "out", init_from=mine)
    assert found[0].hours == 0
    assert found[0].errors == (0x11 % 5,) * len(corpus.test)
    assert len(fakes.trained) == 2 * 2  # none for the base
    before = [mine, "random-1", mine, "egl-1"] if continued else [mine] * 4
    assert [b if b == mine else b.parent.parent.name for b in fakes.before] == before
    with pytest.raises(DataError, match="is of another study"):
        run_study(recipe, corpus, plan, tmp_path / "out", init_from=other)
    with pytest.raises(SpecError, match="a model to begin from, got neither"):
        run_study(recipe, corpus, plan, tmp_path / "none")


@pytest.mark.parametrize("rounds", [1, 3, 9])
def test_hours_fit_the_corpus(folder: Path, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = StudyCorpus(folder, words=False)
    assert (rounds + 1) * hours_for(corpus, rounds) == pytest.approx(corpus.hours / 2)
    monkeypatch.setattr(StudyCorpus, "hours", 5.0 * (rounds + 1))
    assert hours_for(corpus, rounds) == 0.5


def test_a_model_that_is_gone_is_missed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = Fakes(monkeypatch)
    corpus, recipe = StudyCorpus(folder, words=False), tiny_recipe("digits")
    fakes.left = 7  # base: 3 steps; round 1: choosing, training, measuring: 4
    with pytest.raises(Killed):
        run_study(recipe, corpus, PLAN, tmp_path)
    fakes.left = 10_000
    (tmp_path / "runs" / "seed-1" / "random-1" / "model.txt").unlink()
    with pytest.raises(DataError, match="expected the model that was measured last, found none"):
        run_study(recipe, corpus, PLAN, tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"strategies": ("egl", "best")}, "strategies: expected different ones of random"),
        ({"strategies": ("egl", "egl")}, "strategies: expected different ones"),
        ({"strategies": ()}, "got none"),
        ({"seeds": ()}, "seeds: expected different ones"),
        ({"seeds": (1, 1)}, "seeds: expected different ones"),
        ({"base_hours": -1.0}, "hours of 0 or more"),
        ({"round_hours": 0.0}, "above 0 for a round"),
        ({"rounds": 0}, "1 round or more"),
        ({"noise_share": 1.0}, "a share of noise of 0 or more and below 1"),
        ({"continued": -1}, "0 updates or more"),
    ],
)
def test_plans_that_make_no_sense_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        msgspec.structs.replace(PLAN, **change).check()


# ------------------------------------------------------------------ measuring


@pytest.mark.parametrize("name", ["digits", "ctc", "keywords-35"])
def test_errors_are_counted_as_validation_does(folder: Path, name: str) -> None:
    corpus = StudyCorpus(folder, words=name == "keywords-35")
    task = untrained(with_vocabulary(tiny_recipe(name), corpus))
    clips = [clip for clip in corpus.test if name != "keywords-35" or clip.label in WORDS]
    errors, totals = count_errors(task, clips)
    featurizer = Featurizer(task.spec)
    examples = []
    for clip in clips:
        x = featurizer.features(read_clip(Path(), clip, RATE))
        ids = featurizer.targets(clip.text or "", len(x))
        flat = np.zeros(featurizer.n_encoder_frames(len(x)), np.int64)
        examples.append(Example(featurizer.normalize(x), ids, flat, featurizer.label(clip)))
    if isinstance(task, KeywordTask):
        sums = task.validate(collate(examples))
        recalls = [value for key, value in sums.items() if key[7:] in WORDS]
        assert sum(totals) == 3 == sum(n for _, n in recalls)
        assert sum(errors) == 3 - sum(right for right, _ in recalls)
    else:
        measures = [task.validate(collate([example])) for example in examples]
        steps = max(measures[0], key=lambda key: int(key[5:]))
        assert errors == [m[steps][0] for m in measures]
        assert totals == [m[steps][1] for m in measures]
    missing = msgspec.structs.replace(corpus.test[0], audio="/nowhere.wav")
    with pytest.raises(DataError, match="of the split test cannot be read"):
        count_errors(task, [missing])


@pytest.mark.parametrize("bias", [0.0, 50.0])
def test_who_takes_everything_for_a_keyword_misses_them_all(folder: Path, bias: float) -> None:
    """Misses are counted where few other clips pass, whatever a model is inclined to."""
    corpus = StudyCorpus(folder, words=True)
    task = untrained(with_vocabulary(tiny_recipe("keywords-35"), corpus))
    known = task.spec.keywords
    labels = [1 + known.index(c.label) if c.label in known else 0 for c in corpus.test]

    class Knowing(torch.nn.Module):
        """Logits of the right class by 1 higher, and those of keywords by a bias."""

        def __init__(self, knows: bool) -> None:
            super().__init__()
            self.knows = knows

        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
            logits = torch.zeros(len(x), 1, len(WORDS) + 2)
            logits[:, :, 1 : 1 + len(WORDS)] += bias
            if self.knows:
                order = sorted(range(len(labels)), key=lambda k: corpus.test[k].duration_s)
                logits[range(len(x)), 0, [labels[k] for k in order]] += 1.0
            return logits, torch.ones(len(x), dtype=torch.long)

    for knows, wrong in ((False, 3), (True, 0)):
        task.model = Knowing(knows)
        errors, totals = count_errors(task, corpus.test)
        assert (sum(errors), sum(totals)) == (wrong, 3)
        assert [t for t, label in zip(totals, labels, strict=True) if not label] == [0, 0]


def untrained(recipe: Any) -> Task:
    torch.manual_seed(1)
    vocabulary = (
        ()
        if recipe.task.__class__.__name__ == "KeywordTaskSpec"
        else (token_spec_of([" ", recipe.data.characters]),)
    )
    spec = recipe.task.make_spec(recipe.features, recipe.encoder, *vocabulary)
    return build_task(spec, recipe.task).eval()


# ------------------------------------------------------------------ the command


@pytest.mark.parametrize("name", ["digits", "keywords-35"])
def test_the_command_studies_a_corpus(
    name: str, folder: Path, noises: Path, tmp_path: Path
) -> None:
    settings = [part for s in (*TINY, *SIZES[name]) for part in ("--set", s)]
    hours = ["--base-hours", str(3 * SECOND_H), "--round-hours", str(3 * SECOND_H)]
    hours = hours if name == "keywords-35" else []  # what it takes by itself fits the corpus
    arguments = [
        *("active-study", name, "--data", str(folder), "--noises", str(noises), *hours),
        *("--strategy", "random", "--strategy", "egl-diversity", "--rounds", "1", "--seeds", "1"),
        *("--workers", "0", "--device", "cpu", "--out", str(tmp_path / "out"), *settings),
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "study.json").read_bytes())
    assert {row["strategy"] for row in report["active_study"]} == {
        "base",
        "random",
        "egl-diversity",
    }
    assert report["what"] == ("wer" if name == "digits" else "missed keywords")
    assert "Against random at equal hours" in result.output
    assert (tmp_path / "out" / "study.png").stat().st_size > 10_000
    again = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    shown = json.loads(again.stdout.splitlines()[-1])
    assert shown["curves"] == report["curves"]
