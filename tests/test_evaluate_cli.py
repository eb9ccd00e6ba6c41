"""``edge-imputer evaluate`` on a bundle with random weights: what it prints, writes and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile
import torch

from edge_imputer.bundle import Bundle
from edge_imputer.cli.evaluate import print_report
from edge_imputer.cli.main import main
from edge_imputer.metrics import false_alarm_rate
from edge_imputer.spotter import KeywordSpotter
from edge_imputer.train.evaluation import KeywordReport, write_html

RATE = 16_000


def corpus(folder: Path, rows: list[dict[str, Any]], *, rate: int = RATE) -> Path:
    """Clips of shaped noise, one a row."""
    folder.mkdir(parents=True)
    lines = []
    for number, row in enumerate(rows):
        rng = np.random.default_rng(number)
        wave = rng.uniform(-0.3, 0.3, rate) * np.hanning(rate)
        soundfile.write(folder / f"{number}.wav", wave, rate, subtype="PCM_16")
        base = {"audio": f"{number}.wav", "text": None, "speaker": "unknown", "split": "test"}
        lines.append(json.dumps({**base, "duration_s": 1.0, "sample_rate": rate, **row}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def words(tmp_path: Path) -> Path:
    texts = ["one", "two", "one two", "seven"]
    rows = [{"text": t, "speaker": s, "room": "kitchen"} for t in texts for s in ("ann", "bob")]
    rows += [{"text": "one", "split": "valid"}]
    return corpus(tmp_path / "words", rows, rate=8_000)  # resampled to the model's rate


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    rows = [{"text": "nothing at all"}, {"text": None}, {"text": "hm", "split": "valid"}]
    return corpus(tmp_path / "talk", rows)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    return corpus(tmp_path / "noise", [{"speaker": None}])


def run(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, args)])
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    return out


def refusal(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, args)])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    (line,) = err.strip().splitlines()
    return line


def test_transcripts_by_condition(
    capsys: pytest.CaptureFixture[str],
    untrained_bundle: Path,
    words: Path,
    noise: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    arguments = (untrained_bundle, "--data", words, "--by", "speaker", "--by", "room")
    mixed = ("--noise", noise, "--snr", "10,0", "--out", out, "--html", "--json")
    report = json.loads(run(capsys, *arguments, *mixed, "--compare", untrained_bundle))
    assert report == json.loads((out / "evaluation.json").read_text())
    assert report["task"] == "transcripts"
    rows = {(r["condition"]["snr_db"], r["condition"]["group"]): r for r in report["rows"]}
    assert {snr for snr, _ in rows} == {None, 10.0, 0.0}
    assert {group for _, group in rows} == {None, "ann", "bob", "kitchen"}
    whole, ann, bob = (rows[(None, group)] for group in (None, "ann", "bob"))
    assert (whole["n_clips"], whole["wer"]["n"], whole["n_speakers"]) == (8, 10, 2)
    assert whole["substitutions"] == ann["substitutions"] + bob["substitutions"]
    for row in rows.values():
        errors = row["substitutions"] + row["deletions"] + row["insertions"]
        assert row["wer"]["value"] == pytest.approx(errors / row["wer"]["n"])
    for one in report["comparisons"]:  # with itself
        assert (one["difference"]["value"], one["p_value"]) == (0.0, 1.0)
    page = (out / "report.html").read_text("utf8")
    assert "words test, real, 10 dB, speaker ann" in page
    assert "http" not in page


def test_passes_by_number_or_by_schedule(
    capsys: pytest.CaptureFixture[str], untrained_bundle: Path, words: Path, tmp_path: Path
) -> None:
    data = (untrained_bundle, "--data", words, "--out", tmp_path / "out", "--json")
    asked = (("-k", "1"), ("--schedule", "8"), ("--schedule", "7,1"), ("--revisions", "1"))
    reports = [json.loads(run(capsys, *data, *passes)) for passes in asked]
    assert reports[0]["rows"] == reports[1]["rows"]
    own = "the bundle's own schedule + 1 of revision"
    assert [r["run"]["settings"]["passes"] for r in reports] == ["1", "8", "7,1", own]
    # Four settings, eight clips: nothing was taken from another's entries.
    assert len((tmp_path / "out" / "journal.jsonl").read_text().splitlines()) == 32


def test_a_word_error_rate_ends_in_the_card(
    capsys: pytest.CaptureFixture[str],
    untrained_bundle: Path,
    words: Path,
    noise: Path,
    tmp_path: Path,
) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    shutil.copytree(untrained_bundle, bundle)
    before = (bundle / "MODEL_CARD.md").read_text("utf8")
    data = (bundle, "--data", words, "--out", out, "--task", "transcripts", "--write")
    for more in (["--steps", "2"], ["--revisions", "1"], ["--schedule", "7,1"]):
        assert "the bundle's own passes" in refusal(capsys, *data, *more)
    assert "got words test, real, clean, words test, real, clean; nothing was written" in refusal(
        capsys, *data, "--data", words
    )
    assert (bundle / "MODEL_CARD.md").read_text("utf8") == before
    mixed = ("--noise", noise, "--snr", "0", "--by", "speaker", "--json")
    report = json.loads(run(capsys, *data, *mixed))
    metrics = Bundle.load(bundle).manifest.metrics
    assert metrics.data == "words test, real, clean"
    assert metrics.wer is not None
    assert metrics.wer.value == report["rows"][0]["wer"]["value"]
    assert f"| word error rate | {metrics.wer.value:.2%} |" in (bundle / "MODEL_CARD.md").read_text(
        "utf8"
    )


def test_keywords_end_in_a_bundle_that_knows_its_threshold(
    capsys: pytest.CaptureFixture[str],
    untrained_bundle: Path,
    words: Path,
    talk: Path,
    tmp_path: Path,
) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    shutil.copytree(untrained_bundle, bundle)
    arguments = (bundle, "-d", words, "-n", talk, "-w", "one", "-w", "two", "--out", out)
    printed = run(capsys, *arguments, "--html", "--write", "--target-fa-per-hour", 2)
    report = json.loads((out / "evaluation.json").read_text())
    point = Bundle.load(bundle).manifest.operating_point
    assert point is not None
    assert point.thresholds == report["operating_point"]["thresholds"]
    assert set(point.thresholds) == {"one", "two"}
    assert report["misses"][0]["frr"]["n"] == 8  # of one, two, and both in one clip, by two people
    assert report["false_alarms"][0]["false_alarms"]["hours"] == pytest.approx(2 / 3600)
    assert report["claims"][0]["verdict"] != "supported"
    assert f"{report['claims'][0]['verdict'].upper()}: Fires wrongly at most" in printed
    assert KeywordSpotter(bundle).thresholds == point.thresholds
    journal = (out / "journal.jsonl").read_bytes()
    again = run(
        capsys, bundle, "-d", words, "-n", talk, "--task", "keywords", "--out", out, "--json"
    )
    assert json.loads(again)["keywords"] == ["one", "two"]  # the operating point's own
    assert (out / "journal.jsonl").read_bytes() == journal  # and it is no part of the model's hash
    assert_small_rates_are_shown(capsys, out / "evaluation.json", tmp_path / "long.html")


def assert_small_rates_are_shown(
    capsys: pytest.CaptureFixture[str], figures: Path, page: Path
) -> None:
    """Had the test taken 960 hours: a limit of 0.0032 an hour is not 0.00."""
    report = msgspec.json.decode(figures.read_bytes(), type=KeywordReport)
    row = msgspec.structs.replace(report.false_alarms[0], false_alarms=false_alarm_rate(1, 960.0))
    report = msgspec.structs.replace(report, false_alarms=(row,))
    print_report(report)
    shown, text = capsys.readouterr().out, write_html(page, report).read_text("utf8")
    for part in ("0.001", "0.000026 to 0.0059", "0.005"):  # rate, interval, upper limit
        assert f"<td>{part}</td>" in text, part
    assert "0.005" in shown.split()


def test_a_given_threshold_needs_no_valid_split(
    capsys: pytest.CaptureFixture[str],
    untrained_bundle: Path,
    words: Path,
    talk: Path,
    tmp_path: Path,
) -> None:
    arguments = (untrained_bundle, "-d", words, "-n", talk, "-w", "seven", "--out", tmp_path / "o")
    report = json.loads(run(capsys, *arguments, "--threshold", "0.3", "--json"))
    point = report["operating_point"]
    assert point["thresholds"] == {"seven": 0.3}
    assert (point["target_fa_per_hour"], point["chosen_on"]) == (None, None)
    assert [c["verdict"] for c in report["claims"]] == ["supported"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-d", "WORDS", "-w", "one"), "got no --negatives"),
        (("-d", "WORDS", "-n", "TALK", "-w", "jazz"), "'j'"),
        (("-d", "WORDS", "-n", "TALK"), "give --keyword WORD"),
        (("-d", "TALK", "-n", "TALK", "-w", "one"), "clips that say a keyword"),
        (("-d", "WORDS", "-n", "NOISE", "-w", "one"), "found none in noise valid"),
        (("-d", "WORDS", "-n", "TALK", "-w", "one", "--tune-split", "test"), "another split"),
        (
            (
                "-d",
                "NOISE",
            ),
            "clips with a transcript",
        ),
        (("-d", "WORDS", "--snr", "5"), "--noise MANIFEST"),
        (("-d", "WORDS", "--noise", "NOISE"), "--snr 20,10,5"),
        (("-d", "WORDS", "--noise", "NOISE", "--snr", "loud"), "'loud'"),
        (("-d", "WORDS", "--noise", "NOISE", "--snr", "5,nan"), "'5,nan'"),
        (("-d", "WORDS", "--noise", "NOISE", "--snr", "inf"), "'inf'"),
        (("-d", "WORDS", "-n", "TALK", "-w", "one", "--target-fa-per-hour", "inf"), "target"),
        (("-d", "WORDS", "--noise", "WORDS", "--snr", "5", "--split", "train"), "'train'"),
        (("-d", "none"), "manifest.jsonl"),
        (("-d", "WORDS", "--synthetic", "TALK"), "one of the data sets"),
        (("-d", "WORDS", "--task", "transcripts", "-w", "one"), "belongs to keywords"),
        (("-d", "WORDS", "-n", "TALK", "-w", "one", "--compare", "BUNDLE"), "transcripts"),
        (("-d", "WORDS", "-n", "TALK", "-w", "one", "--schedule", "8"), "transcripts and slots"),
        (("-d", "WORDS", "--schedule", "1,x"), "--schedule such as 5,1,1,1"),
        (("-d", "WORDS", "--backend", "gpu"), "'gpu'"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str],
    untrained_bundle: Path,
    words: Path,
    talk: Path,
    noise: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
) -> None:
    places = {"WORDS": words, "TALK": talk, "NOISE": noise, "BUNDLE": untrained_bundle}
    arguments = [places.get(word, word) for word in options]
    line = refusal(capsys, untrained_bundle, *arguments, "--out", tmp_path / "out")
    assert message in line


def test_a_model_that_is_none(
    capsys: pytest.CaptureFixture[str], words: Path, talk: Path, tmp_path: Path
) -> None:
    data = ("-d", words, "--out", tmp_path / "out")
    assert "manifest.json" in refusal(capsys, tmp_path / "none", *data)
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(b"no checkpoint")
    line = refusal(capsys, checkpoint, *data, "-n", talk, "--task", "keywords")
    assert "model.ckpt" in line


@pytest.fixture
def keyword_checkpoint(tmp_path: Path) -> Path:
    """An untrained classifier of "one" and "two", as training would leave it."""
    from edge_imputer.specs import CrnnSpec, FeatureSpec
    from edge_imputer.train.checkpoint import Origin, pack
    from edge_imputer.train.recipe import Recipe
    from edge_imputer.train.tasks import build_task
    from edge_imputer.train.tasks.settings import KeywordTaskSpec

    torch.manual_seed(0)
    settings = KeywordTaskSpec(keywords=("one", "two"))
    features, encoder = FeatureSpec(), CrnnSpec()
    spec = settings.make_spec(features, encoder)
    task = build_task(spec, settings)
    recipe = Recipe(features=features, encoder=encoder, task=settings)
    path = tmp_path / "words.ckpt"
    torch.save(pack(task.state_dict(), spec, recipe, Origin(data="none", n_clips=0), 0), path)
    return path


def test_a_keyword_model_s_checkpoint_is_evaluated(
    capsys: pytest.CaptureFixture[str],
    keyword_checkpoint: Path,
    words: Path,
    talk: Path,
    noise: Path,
    tmp_path: Path,
) -> None:
    data = (keyword_checkpoint, "-d", words, "-n", talk, "--out", tmp_path / "out")
    report = json.loads(run(capsys, *data, "--noise", noise, "--snr", "5", "--json"))
    assert report["keywords"] == ["one", "two"]
    assert [m["frr"]["n"] for m in report["misses"]] == [8, 8]
    assert 0 < report["operating_point"]["thresholds"]["one"] <= 1
    assert "listens for one, two" in refusal(capsys, *data, "-w", "seven")
    assert "is a checkpoint" in refusal(capsys, *data, "--write")
    assert "--task keywords" in refusal(capsys, *data[:3], "--task", "transcripts", *data[5:])
