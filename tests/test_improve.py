"""``edge-imputer improve``: saved clips in, a better model out, and the truth about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from math import comb
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_imputer.cli import improve as cli
from edge_imputer.cli.main import main
from edge_imputer.cli.steps import export_checkpoint, load_corpus
from edge_imputer.errors import DataError, SpecError
from edge_imputer.train.checkpoint import load_checkpoint, read_raw
from edge_imputer.train.data import Manifest, write_manifest
from edge_imputer.train.evaluation import Journal
from edge_imputer.train.improving import (
    Improvement,
    ImproveReport,
    Rules,
    Spotter,
    collect,
    continuing_recipe,
    improve,
    open_spotter,
)
from edge_imputer.train.improving.comparing import Outcome, compare, sign_test
from edge_imputer.train.improving.continuing import shares_with_hard, write_corpus
from edge_imputer.train.improving.mining import fires
from edge_imputer.train.recipe import BucketedBatches, DrawnBatches, read_recipe
from edge_imputer.train.trainer import read_corpus, train
from edge_imputer.train.trainer.store import Store

from .improving_cases import (
    CONFUSING,
    CONFUSING_WRITER,
    KEYWORD,
    OTHER_VOICE,
    RATE,
    TEXT_SETTINGS,
    row,
    sound,
    text_recipe,
    train_mistaken_spotter,
    train_writer,
    write_clip,
    write_negatives,
)
from .improving_cases import (
    write_corpus as write_tones,
)
from .training_cases import tiny_recipe

N_FIRES, N_MISSES = 24, 24
GOOD = {"updates": 200, "rate": 0.3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model, its corpus, and what a spotter saved in use."""
    home = tmp_path_factory.mktemp("improve")
    train_mistaken_spotter(write_tones(home / "tones"), home / "run")
    rng = np.random.default_rng(5)
    for take in range(N_FIRES):
        write_clip(home / "fires" / f"{take}.wav", sound(CONFUSING, rng))
    for take in range(N_MISSES):
        write_clip(home / "misses" / KEYWORD / f"{take}.flac", sound(OTHER_VOICE, rng))
    return home


def options(home: Path, out: Path, **changes: object) -> Improvement:
    values = {
        "model": home / "run" / "last.ckpt",
        "data": home / "tones",
        "out": out,
        "false_fires": home / "fires",
        "misses": home / "misses",
        "progress": False,
    }
    return Improvement(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def improved(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImproveReport]:
    out = tmp_path_factory.mktemp("improved") / "out"
    return out, improve(options(home, out, **GOOD))


def test_mistakes_are_mended_and_nothing_is_forgotten(home, improved):
    out, report = improved
    found = {c.clips: c for c in report.comparisons}
    fires_, misses = found["kept-back false fires"], found["kept-back misses"]
    assert fires_.before.value > 0.9
    assert fires_.after.value < 0.2
    assert misses.before.value > 0.9
    assert misses.after.value < 0.3
    assert fires_.p_value < 0.05
    for name in ("valid, keywords", "valid, others"):
        assert (found[name].before.value, found[name].after.value) == (0.0, 0.0)
    assert report.worse == ()
    assert report.unmeasured == ()
    assert report.thresholds == {KEYWORD: 0.5}
    kept, trained = report.n_kept_back, report.n_trained
    assert kept["false fires"] + trained["false fires"] == N_FIRES
    assert kept["misses"] + trained["misses"] == N_MISSES
    assert (fires_.before.n, misses.before.n) == (kept["false fires"], kept["misses"])
    # 24 clips of which a third is kept back, by hash
    assert 2 <= kept["false fires"] <= 14
    assert msgspec.json.decode((out / "improve.json").read_bytes(), type=ImproveReport) == report


def test_the_old_model_stays_and_the_new_one_knows_where_it_is_from(home, improved):
    out, report = improved
    old, new = load_checkpoint(home / "run" / "last.ckpt"), load_checkpoint(out / "improved.ckpt")
    assert (old.updates, old.sha256) == (240, report.model_sha256)
    assert new.sha256 == report.improved_sha256
    assert new.origin.init_from == old.sha256
    assert new.spec == old.spec
    assert new.recipe.optimizer.learning_rate == pytest.approx(
        0.3 * old.recipe.optimizer.learning_rate
    )
    assert new.updates == report.updates == GOOD["updates"]


def test_what_is_kept_back_is_not_trained_on(home, improved):
    out, report = improved
    rows = list(Manifest.open(out / "corpus"))
    trained = {Path(r.audio).resolve() for r in _resolved(out / "corpus", rows)}
    saved = list(Manifest.open(out / "saved"))
    kept = {Path(r.audio).resolve() for r in _resolved(out / "saved", saved) if r.split == "test"}
    assert len(kept) == sum(report.n_kept_back.values())
    assert not kept & trained
    assert {r.split for r in rows} == {"train", "valid"}
    assert sum(r.split == "valid" for r in rows) == 24  # the corpus' own, nothing new
    labels = [r.label for r in rows if r.split == "train"]
    assert labels.count("_hard_") == report.n_trained["false fires"]
    assert labels.count(KEYWORD) == 16 + report.repeats[KEYWORD] * report.n_trained["misses"]
    assert labels.count("_unknown_") == 48


def _resolved(folder: Path, rows: list) -> list:
    return [msgspec.structs.replace(r, audio=str(folder / r.audio)) for r in rows]


@pytest.mark.parametrize("between_renames", [False, True])
def test_a_run_that_was_killed_goes_on_to_the_same_model(
    home, improved, tmp_path, monkeypatch, between_renames
):
    out, _ = improved
    saves = []
    original = Store.save

    def dying(self, state):
        original(self, state)
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            improve(options(home, tmp_path / "out", **GOOD))
        assert not (tmp_path / "out" / "improved.ckpt").exists()
        if between_renames:  # the last checkpoint is the one before, and the next not in place
            run = tmp_path / "out" / "run"
            (run / "last.ckpt").replace(run / "previous.ckpt")
        improve(options(home, tmp_path / "out", **GOOD))
    assert len(saves) == 5  # one every 16 of 80 updates, none of them twice
    one, two = (read_raw(f / "improved.ckpt")["state_dict"] for f in (out, tmp_path / "out"))
    assert all((one[name] == two[name]).all() for name in one)


def test_a_model_that_gets_worse_says_so(home, tmp_path, capsys):
    """Another sound is called a missed keyword: the model fires at it then, and that is said."""
    rng = np.random.default_rng(8)
    for take in range(20):
        write_clip(tmp_path / "wrong" / f"{take}.wav", sound("low", rng))
    wrong = {"false_fires": None, "misses": tmp_path / "wrong", "rate": 0.5, "share": 0.9}
    report = improve(options(home, tmp_path / "out", updates=60, **wrong))
    assert any(line.startswith("valid, others, fires: worse") for line in report.worse)
    cli.print_improved(report)
    printed = capsys.readouterr().out
    assert "WORSE: valid, others, fires" in printed
    assert "Nothing measured got worse" not in printed
    assert report.traded == any(c.verdict == "better" for c in report.comparisons)


def test_mistakes_that_were_only_traded_are_called_so(improved, capsys):
    """Fewer fires and more misses may be the same model at another threshold."""
    _, report = improved
    assert not report.traded
    few = compare("missed", "valid, keywords", Outcome((False,), 0), Outcome((True,), 0))
    traded = msgspec.structs.replace(report, comparisons=(*report.comparisons, few))
    assert traded.traded
    assert len(traded.worse) == 1
    cli.print_improved(traded)
    assert "Choose it anew" in capsys.readouterr().out


def test_the_command_mines_negatives_and_compares(home, tmp_path, capsys):
    """The whole of it in one command: mine, merge, continue, compare."""
    negatives = write_negatives(tmp_path / "talk")
    rows = list(Manifest.open(negatives))
    held_out = [
        msgspec.structs.replace(r, split="valid") for r in rows if r.audio == f"{CONFUSING}-4.wav"
    ]
    write_manifest(negatives, [*[r for r in rows if r.audio != f"{CONFUSING}-4.wav"], *held_out])
    out = tmp_path / "out"
    arguments = [home / "run", "-n", negatives, "--data", home / "tones", "--out", out]
    code, printed, err = command(capsys, *arguments, "--updates", 200, "--rate", 0.3)
    assert code == 0, err
    assert printed.splitlines()[-1] == str(out / "improved.ckpt")
    report = json.loads((out / "improve.json").read_text())
    assert report["n_mined"] == 4
    (rate,) = report["rates"]
    assert (rate["before"]["count"], rate["after"]["count"]) == (1, 0)
    assert rate["before"]["hours"] == pytest.approx(held_out[0].duration_s / 3600)
    assert "Nothing measured got worse." in printed
    code, _, err = command(capsys, *arguments)
    assert code == 2
    assert "improve.json exists" in err


def command(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["improve", *map(str, args)])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def _empty(folder: Path) -> None:
    folder.mkdir()


def _text_only(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing to hear")


def _too_short(folder: Path) -> None:
    write_clip(folder / "a.wav", np.full(160, 0.1, np.float32))


def _silent(folder: Path) -> None:
    write_clip(folder / "a.wav", np.zeros(RATE, np.float32))


def _corrupt(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.wav").write_bytes(b"RIFF and nothing else")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_empty, "expected clips (.flac, .ogg, .wav), found none"),
        (_text_only, "expected clips (.flac, .ogg, .wav), found none"),
        (_too_short, "too short: 0.01 s"),
        (_silent, "silent: peak"),
        (_corrupt, "unreadable"),
        (lambda folder: None, "expected a folder of saved clips"),
    ],
)
def test_clips_that_cannot_be_used(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    message: str,
) -> None:
    make(tmp_path / "clips")
    arguments = [home / "run", "--data", home / "tones", "--out", tmp_path / "out"]
    code, _, err = command(capsys, *arguments, "--false-fires", tmp_path / "clips")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "run").exists()


def test_models_and_places_that_cannot_be(home, tmp_path, capsys, untrained_bundle):
    clips = ("--false-fires", home / "fires", "--data", home / "tones")
    out = ("--out", tmp_path / "out")

    def refused(*args: object) -> str:
        code, _, err = command(capsys, *args)
        assert code == 2
        (line,) = err.strip().splitlines()
        return line

    line = refused(untrained_bundle, *clips, *out, "-w", "seven")
    assert "no weights.npz, the weights to train on from" in line
    assert "found none of these" in refused(tmp_path / "none", *clips, *out)
    assert "got none" in refused(home / "run", "--data", home / "tones", *out)
    inside = ("--out", home / "run")
    assert "folder of its own" in refused(home / "run", *clips, *inside)
    assert "'tones'; give the folder" in refused(home / "run", *clips[:2], *out)
    assert "expected one of the keywords up" in refused(home / "run", *clips, *out, "-w", "stop")
    assert "--set changes the recipe" in refused(home / "run", *clips, *out, "--set", "run.seed=2")
    line = refused(home / "run", *clips, *out, "--recipe", "wake-word")
    assert "expected a recipe for the model's own features" in line
    assert "share above 0 and below 1" in refused(home / "run", *clips, *out, "--share", "2")
    speech = tmp_path / "speech"
    tiny = tiny_recipe("digits")
    data = read_corpus(home / "tones", tiny.data, RATE)
    train(*data, tiny, speech, data_name="tones", progress=False)
    assert "its recipe names none; give --keyword WORD" in refused(speech, *clips, *out)
    line = refused(speech, *clips, *out, "-w", "up", "--recipe", "ctc")
    assert "expected a recipe for the model's own task" in line
    line = refused(home / "run", *clips, *out, "-w", "up", "-w", "down")
    assert "expected one at most" in line


def test_saved_clips_are_sorted_out(tmp_path):
    rng = np.random.default_rng(0)
    clips = [sound("low", rng) for _ in range(40)]
    for take, waveform in enumerate(clips):
        write_clip(tmp_path / "fires" / "monday" / f"{take}.wav", waveform)
    write_clip(tmp_path / "fires" / "copy.wav", clips[3])
    said = sound("up", rng)
    write_clip(tmp_path / "misses" / "hey_lamp" / "a.wav", said)
    write_clip(tmp_path / "misses" / "b.wav", 0.5 * said)
    write_clip(tmp_path / "misses" / "Stop" / "c.wav", 0.4 * said)
    write_clip(tmp_path / "misses" / "d.wav", clips[5])  # a false fire too
    (tmp_path / "misses" / "e.wav").write_bytes(b"")
    places = tmp_path / "fires", tmp_path / "misses"
    with pytest.raises(DataError, match="which keyword does it say"):
        collect(*places, ["hey lamp", "stop"])
    found = collect(*places, ["hey lamp", "stop"], keyword="stop")
    said_by = {c.path.name: c.keyword for c in found.clips if c.keyword}
    assert said_by == {"a.wav": "hey lamp", "b.wav": "stop", "c.wav": "stop"}
    assert {Path(p).name for p in found.bad} == {"5.wav", "d.wav", "e.wav"}
    assert "said to be a false fire and stop" in found.bad[str(tmp_path / "misses" / "d.wav")]
    assert len(found.repeated) == 1
    assert (
        len(found.some(misses=False, kept_back=True) + found.some(misses=False, kept_back=False))
        == 39
    )
    # Neither names nor company decide what is kept back.
    kept = {c.digest for c in found.clips if c.kept_back}
    shutil.move(tmp_path / "fires" / "monday", tmp_path / "again")
    for take in range(20):
        (tmp_path / "again" / f"{take}.wav").unlink()
    fewer = collect(tmp_path / "again", None, ["stop"])
    assert {c.digest for c in fewer.clips if c.kept_back} == kept & {c.digest for c in fewer.clips}
    everything = collect(tmp_path / "again", None, ["stop"], keep_back=0.0)
    assert not any(c.kept_back for c in everything.clips)
    with pytest.raises(SpecError, match="to keep back"):
        collect(*places, ["stop"], keep_back=1.0)
    with pytest.raises(DataError, match=r"all 20 clips .* are kept back"):
        collect(tmp_path / "again", None, ["stop"], keep_back=0.999999)


def test_linked_clips_say_what_their_folder_says(tmp_path):
    rng = np.random.default_rng(0)
    write_clip(tmp_path / "elsewhere" / "a.wav", sound("up", rng))
    linked = tmp_path / "misses" / "stop"
    linked.mkdir(parents=True)
    (linked / "b.wav").symlink_to(tmp_path / "elsewhere" / "a.wav")
    found = collect(None, tmp_path / "misses", ["hey lamp", "stop"], keep_back=0.0)
    assert [(c.path, c.keyword) for c in found.clips] == [(linked / "b.wav", "stop")]


def test_a_long_false_fire_is_cut_to_where_it_fires(home, tmp_path):
    rng = np.random.default_rng(2)
    quiet = rng.normal(0, 1e-3, 6 * RATE).astype(np.float32)
    heard = sound(CONFUSING, rng)
    quiet[4 * RATE : 4 * RATE + len(heard)] += heard
    path = write_clip(tmp_path / "long.wav", quiet)
    spotter = open_spotter(home / "run" / "last.ckpt")
    with Journal(tmp_path / "journal.jsonl") as journal:
        (cut,) = fires(spotter, Path(), row(str(path), 6.0), Rules(), journal)
    assert cut.score > 0.5
    assert cut.offset_s < 4.0
    assert cut.offset_s + cut.duration_s > 4.4


@given(
    st.floats(0.05, 0.95),
    st.dictionaries(
        st.sampled_from(["_unknown_", "_near_miss_", "_silence_", "_hard_", "up"]),
        st.just(0.0) | st.floats(0.01, 0.2),
    ),
)
def test_hard_negatives_take_their_share_from_other_speech(share, shares):
    found = shares_with_hard(shares, share)
    speech = ("_unknown_", "_near_miss_", "_hard_")
    total = sum(shares.get(name, 0) for name in speech)
    if total > shares.get("_hard_", 0):
        assert found["_hard_"] == pytest.approx(min(share, total / 2))
    else:
        assert found["_hard_"] == (total or share)
    if total > 0:  # keywords and silence are as frequent as before
        assert sum(found.get(name, 0) for name in speech) == pytest.approx(total)
        assert {k: v for k, v in found.items() if k not in speech} == {
            k: v for k, v in shares.items() if k not in speech
        }
    assert sum(found.values()) <= 1 + 1e-9


def test_the_recipe_goes_on_gently():
    first = read_recipe("wake-word", ["run.ema=0.9", "run.patience=3"])
    then = continuing_recipe(first, ())
    assert (then.run.updates, then.run.result, then.run.patience, then.run.ema) == (
        2000,
        "last",
        0,
        0.0,
    )
    assert then.optimizer.learning_rate == pytest.approx(1e-4)
    assert (then.encoder, then.features, then.data) == (first.encoder, first.features, first.data)
    assert then.batches.shares["_hard_"] == pytest.approx(0.25)
    assert continuing_recipe(first, (), updates=7, rate=0.5).run.updates == 7
    with pytest.raises(SpecError, match="share above 0"):
        continuing_recipe(first, (), share=1.0)
    bucketed = read_recipe("keywords-35", ["batches={kind='bucketed'}"])
    assert isinstance(continuing_recipe(bucketed, ()).batches, BucketedBatches)


def test_the_recipe_of_a_model_that_writes_names_its_keywords():
    then = continuing_recipe(read_recipe("digits"), ("seven", "two"), share=0.2)
    assert then.task.keywords == ("seven", "two")
    assert (then.task.flat_start, then.task.all_masked) == (0.0, 0.0)
    assert then.batches.shares == {"_hard_": 0.2}
    assert continuing_recipe(read_recipe("ctc"), ("two",)).task.keywords == ("two",)


def test_rows_are_repeated_up_to_their_share(tmp_path):
    """100 old clips of the word and 900 of others; 5 misses and 10 false fires come."""
    old = [row(f"{i}.wav", 1.0, label="up" if i < 100 else "_unknown_") for i in range(1000)]
    new = [row(f"m{i}.wav", 1.0, label="up", text="up") for i in range(5)]
    new += [row(f"f{i}.wav", 1.0, label="_hard_") for i in range(10)]
    new += [row("kept.wav", 1.0, label="_hard_", split="test")]
    mined = [row(f"h{i}.wav", 1.0, label="_hard_") for i in range(40)]
    parts = []
    for name, rows in (("old", old), ("new", new), ("mined", mined)):
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name, rows)
        parts.append(Manifest.open(tmp_path / name))
    original, saved, hard = parts
    by_label = read_recipe("wake-word")
    assert isinstance(by_label.batches, DrawnBatches)
    epochs = read_recipe("wake-word", ["batches={kind='bucketed'}"])
    repeats = write_corpus(original, saved, hard, tmp_path / "a", share=0.3, recipe=by_label)
    assert repeats == {"up": 9, "_hard_": 4}
    labels = [r.label for r in Manifest.open(tmp_path / "a")]
    assert pytest.approx(0.3, abs=0.02) == 45 / (100 + 45)
    assert labels.count("up") == 145
    assert labels.count("_hard_") == 40 + 40
    repeats = write_corpus(original, saved, None, tmp_path / "b", share=0.3, recipe=epochs)
    assert repeats == {"up": 9, "_hard_": 43}  # 430 of 1430 rows
    assert all("kept" not in r.audio for r in Manifest.open(tmp_path / "b"))
    text = read_recipe("digits")  # which knows no label but that of hard negatives
    repeats = write_corpus(original, saved, hard, tmp_path / "c", share=0.3, recipe=text)
    assert repeats == {"up": 9, "_hard_": 4}  # of a tenth of the rows, which do not say it
    said = [row(f"{i}.wav", 1.0, text="come up now" if i < 400 else "no") for i in range(1000)]
    write_manifest(tmp_path / "old", said)
    original = Manifest.open(tmp_path / "old")
    repeats = write_corpus(original, saved, hard, tmp_path / "d", share=0.3, recipe=text)
    assert repeats == {"up": 34, "_hard_": 4}  # 170 of 570 that say it
    (tmp_path / "one").mkdir()
    write_manifest(tmp_path / "one", new[:1])
    one = Manifest.open(tmp_path / "one")
    repeats = write_corpus(original, one, None, tmp_path / "e", share=0.3, recipe=text)
    assert repeats == {"up": 100}  # and no more, of one recording


def test_comparisons_count_pairs():
    before = Outcome((True, True, True, False, None, True), 7)
    after = Outcome((False, False, True, True, True, False), 3)
    found = compare("fires", "clips", before, after)
    assert found is not None
    assert (found.before.n, found.before.value, found.after.value) == (5, 0.8, 0.4)
    assert (found.mended, found.spoilt, found.verdict) == (3, 1, "better")
    assert found.p_value == pytest.approx(2 * (1 + 4) / 16)
    assert "which may be chance" in str(found)
    assert compare("fires", "clips", Outcome((None,), 0), Outcome((True,), 1)) is None


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_is_exact(mended, spoilt):
    p = sign_test(mended, spoilt)
    n = mended + spoilt
    uneven = sum(comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(mended - spoilt))
    assert p == pytest.approx(uneven / 2**n)
    assert 0 < p <= 1


# ----------------------------------------------------------- models that write text, and bundles


@pytest.fixture(scope="module")
def writer(home: Path) -> Path:
    """A small Imputer that writes the names of the sounds; and what it takes for the keyword."""
    rng = np.random.default_rng(6)
    for take in range(N_FIRES):
        write_clip(home / "near" / f"{take}.wav", sound(CONFUSING_WRITER, rng))
    return train_writer(home / "tones", home / "writer")


@pytest.fixture(scope="module")
def bundle(home: Path, writer: Path) -> Path:
    """The same as it is deployed."""
    path = home / "bundle"
    export_checkpoint(writer, load_corpus(home / "tones"), path, licence="none")
    return path


def spoken(spotter: Spotter, name: str, n: int = 12) -> np.ndarray:
    rng = np.random.default_rng(7)
    return np.array([spotter.system.score(sound(name, rng)).max() for _ in range(n)])


def test_a_bundle_is_improved_and_exported_again(home, bundle, tmp_path, capsys):
    """Its false fires have no transcript; its misses are transcripts as any."""
    out = tmp_path / "out"
    code, stdout, stderr = command(
        capsys,
        bundle,
        *("--keyword", KEYWORD, "--false-fires", home / "near", "--misses", home / "misses"),
        *("--data", home / "tones", "--out", out, "--updates", "200", "--rate", "1"),
    )
    assert code == 0, stderr
    assert stdout.strip().splitlines()[-1] == str(out / "bundle")
    report = msgspec.json.decode((out / "improve.json").read_bytes(), type=ImproveReport)
    found = {c.clips: c for c in report.comparisons}
    fires_ = found["kept-back false fires"]
    assert fires_.mended > 0 == fires_.spoilt
    assert fires_.after.value < 0.2
    assert found["kept-back misses"].after.value < 0.3
    for name in ("valid, keywords", "valid, others", "valid, transcripts"):
        assert (found[name].before.value, found[name].after.value) == (0.0, 0.0)
    assert found["valid, transcripts"].what == "misspelt"
    assert report.model == "bundle"
    old, new = (open_spotter(path, keywords=[KEYWORD]) for path in (bundle, out / "bundle"))
    assert np.median(spoken(new, KEYWORD)) > 0.5
    assert spoken(new, CONFUSING_WRITER).mean() < 0.3 * spoken(old, CONFUSING_WRITER).mean()
    # The new checkpoint knows what it listens for.
    assert open_spotter(out / "improved.ckpt").keywords == (KEYWORD,)


def test_a_checkpoint_hears_what_its_bundle_hears(bundle, writer):
    """In float and whole utterances, where the other is int8 and a stream."""
    one, other = open_spotter(writer, keywords=[KEYWORD]), open_spotter(bundle, keywords=[KEYWORD])
    assert one.system.frame_s == other.system.frame_s
    for name in (KEYWORD, "down", CONFUSING_WRITER):
        np.testing.assert_allclose(spoken(one, name), spoken(other, name), atol=0.15)


def test_an_old_bundle_needs_a_recipe(home, bundle, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(bundle, old)
    (old / "recipe.json").unlink()
    manifest = json.loads((old / "manifest.json").read_text("utf8"))
    del manifest["files"]["recipe.json"]
    (old / "manifest.json").write_text(json.dumps(manifest), "utf8")
    given_options = ("-w", KEYWORD, "--false-fires", home / "near", "--data", home / "tones")
    given_options += ("--updates", "2", "--out", tmp_path / "out")
    code, _, err = command(capsys, old, *given_options)
    assert code == 2
    assert "no recipe.json, the recipe that it was trained by; give one with --recipe" in err
    code, _, err = command(capsys, old, *given_options, "--recipe", "ctc")  # another network
    assert code == 2
    assert not list((tmp_path / "out").glob("original*"))
    first = [word for setting in TEXT_SETTINGS for word in ("--set", setting)]
    code, _, err = command(capsys, old, *given_options, "--recipe", "digits", *first)
    assert code == 0, err
    task = load_checkpoint(tmp_path / "out" / "improved.ckpt").recipe.task
    assert (task.flat_start, task.keywords) == (0.0, (KEYWORD,))


def test_another_bundle_in_the_same_folder_is_not_taken_for_the_first(
    home, bundle, tmp_path, capsys
):
    """A first try was interrupted; then another model is improved there, in the default folder."""
    out = tmp_path / "out"
    other = train_writer(home / "tones", tmp_path / "run", "run.updates=2", "run.seed=5")
    export_checkpoint(other, load_corpus(home / "tones"), tmp_path / "other", licence="none")
    words = ("-w", KEYWORD, "--false-fires", home / "near", "--data", home / "tones")
    code, _, err = command(capsys, bundle, *words, "--out", out, "--misses", tmp_path / "none")
    assert code == 2, err
    command(capsys, tmp_path / "other", *words, "--out", out, "--updates", "2")
    first, second = (load_checkpoint(path) for path in (other, out / "improved.ckpt"))
    weights = first.task.state_dict()["ctc.weight"], second.task.state_dict()["ctc.weight"]
    assert (weights[0] - weights[1]).abs().max() < 0.1  # two small steps from there


def test_keywords_keep_their_places_and_an_interrupted_export_goes_on(
    home, bundle, tmp_path, capsys
):
    out = tmp_path / "out"
    given_options = (bundle, "-w", "down", "-w", KEYWORD, "--false-fires", home / "near")
    given_options += ("--data", home / "tones", "--updates", "2", "--out", out)
    assert command(capsys, *given_options)[0] == 0
    report = msgspec.json.decode((out / "improve.json").read_bytes(), type=ImproveReport)
    assert report.keywords == ("down", KEYWORD)
    said = next(c for c in report.comparisons if c.clips == "valid, keywords")
    assert (said.before.n, said.before.value, said.after.value) == (12, 0.0, 0.0)
    recipe = json.loads((out / "bundle" / "recipe.json").read_text("utf8"))
    assert (recipe["data"]["folder"], recipe["data"]["noises"]) == ("", None)
    shutil.rmtree(out / "bundle")  # as if it had been killed while it quantised
    before = (out / "improved.ckpt").read_bytes()
    code, stdout, err = command(capsys, *given_options)
    assert code == 0, err
    assert stdout.strip().endswith("bundle")
    assert open_spotter(out / "bundle", keywords=["down"]).keywords == ("down",)
    assert (out / "improved.ckpt").read_bytes() == before


def test_a_keyword_given_twice_is_refused(writer):
    with pytest.raises(SpecError, match="distinct keywords"):
        open_spotter(writer, keywords=["up", "up"])


def test_hard_negatives_without_a_keyword_are_left_out(home, tmp_path, caplog):
    """A recipe that names none has no use for them, and says so."""
    rows = [*Manifest.open(home / "tones"), row("train-low-0.wav", 0.5, label="_hard_")]
    shutil.copytree(home / "tones", tmp_path / "tones")
    write_manifest(tmp_path / "tones", rows)
    plan = text_recipe("run.updates=2", "run.valid_every=2")
    data = read_corpus(tmp_path / "tones", plan.data, RATE)
    train(*data, plan, tmp_path / "run", data_name="tones", progress=False)
    assert "left out 1 of 65 clips (no transcript: 1)" in caplog.text
    shares = text_recipe("batches.shares={_unknown_=0.5}")
    with pytest.raises(SpecError, match="expected _hard_ alone"):
        train(*data, shares, tmp_path / "other", data_name="tones", progress=False)
