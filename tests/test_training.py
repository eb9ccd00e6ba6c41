"""The trainer on real clips: it learns, its checkpoint carries its spec, a resumed run is the same.

The clips are the project's own; what training reaches is measured by `make demo`, not here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import torch

from edge_imputer import train as train_package
from edge_imputer.errors import CheckpointError, DataError, TrainingError
from edge_imputer.specs import ConformerSpec, ConvSpec, CrnnSpec, ImputerSpec, TcnSpec
from edge_imputer.train.checkpoint import KEY, load_checkpoint
from edge_imputer.train.data import (
    AugmentSpec,
    Clip,
    Featurizer,
    fixed_batches,
    flat_alignment,
    load_clips,
    read_manifest,
)
from edge_imputer.train.recipe import (
    DataSection,
    DrawnBatches,
    Recipe,
    RunSection,
    make_recipe,
)
from edge_imputer.train.tasks import ImputerTaskSpec, build_task
from edge_imputer.train.trainer import train

DIGITS = Path(train_package.__file__).parent / "digits"
RECIPE = Recipe(
    data=DataSection(workers=0, valid_utterances=8),
    encoder=CrnnSpec(conv=(ConvSpec(channels=4), ConvSpec(channels=4)), hidden=12),
    task=ImputerTaskSpec(head=ImputerSpec(width=8), flat_start=0.25, all_masked=0.5),
    augment=AugmentSpec(speeds=(1.0,), clips_joined=(1, 2), room=0.0),
    batches=DrawnBatches(size=4),
    run=RunSection(updates=8, valid_every=4),
)


def changed(*settings: str, recipe: Recipe = RECIPE) -> Recipe:
    return make_recipe(msgspec.to_builtins(recipe), settings)


@pytest.fixture(scope="module")
def clips() -> tuple[list[Clip], list[Clip]]:
    voices = ("kokoro:af_bella", "kokoro:bf_lily")
    records = [r for r in read_manifest(DIGITS) if r.speaker in voices]
    splits = ("train", "valid")
    train_clips, valid_clips = (
        load_clips(DIGITS, records, split, sample_rate=16_000)
        for split in splits  # type: ignore[arg-type]
    )
    return train_clips, valid_clips


@pytest.fixture(scope="module")
def unbroken(clips, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    train(*clips, RECIPE, out, data_name="two voices", progress=False)
    return out


def test_checkpoint_carries_spec_recipe_and_origin(unbroken, clips):
    loaded = load_checkpoint(unbroken / "last.ckpt")
    assert loaded.spec.encoder == RECIPE.encoder
    assert loaded.spec.head == RECIPE.task.head
    assert "".join(loaded.spec.tokens.characters) == " efghinorstuvwxz"
    assert loaded.spec.features.std > 0.5  # measured on the clips, not the default
    assert loaded.recipe == RECIPE
    assert (loaded.origin.data, loaded.origin.n_clips) == ("two voices", len(clips[0]))
    assert loaded.updates == RECIPE.run.updates
    assert not loaded.encoder.training


def test_resumed_run_is_the_unbroken_one(unbroken, clips, tmp_path):
    class Stop(Exception):
        pass

    out = tmp_path / "resumed"
    # A run that dies soon after its first checkpoint, at update 4 of 8.
    original = torch.optim.AdamW.step
    calls = 0

    def step(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls > 5:
            raise Stop
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(Stop):
            train(*clips, RECIPE, out, data_name="two voices", progress=False)
    assert load_checkpoint(out / "last.ckpt").updates == 4
    train(*clips, RECIPE, out, data_name="two voices", resume=True, progress=False)
    resumed = load_checkpoint(out / "last.ckpt")
    assert resumed.updates == RECIPE.run.updates
    expected = load_checkpoint(unbroken / "last.ckpt").task.state_dict()
    for name, value in resumed.task.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_training_lowers_the_loss(clips, tmp_path):
    """Both losses on one fixed batch, before and after eighty updates."""
    recipe = changed("run.updates=80", "batches.size=8", "run.valid_every=80")
    path = train(*clips, recipe, tmp_path, data_name="x", progress=False)
    trained = load_checkpoint(path)
    torch.manual_seed(recipe.run.seed)
    fresh = build_task(trained.spec, recipe.task).eval()
    batch = fixed_batches(clips[0], Featurizer(trained.spec), 8)[0]

    def losses(task: torch.nn.Module) -> tuple[float, float]:
        out, frames = task.encoder(batch.features, batch.lengths)
        arguments = (batch.targets, frames, batch.target_lengths)
        ctc = torch.nn.functional.ctc_loss(
            task.ctc(out).log_softmax(-1).transpose(0, 1), *arguments
        )
        head = task.head(out, task.head.fully_masked(out)).log_softmax(-1)
        return float(ctc), float(torch.nn.functional.ctc_loss(head.transpose(0, 1), *arguments))

    with torch.no_grad():
        before, after = losses(fresh), losses(trained.task)
    assert after[0] < 0.7 * before[0]
    assert after[1] < 0.7 * before[1]


def test_flat_start_spreads_characters_over_speech(unbroken):
    spec = load_checkpoint(unbroken / "last.ckpt").spec
    tokenizer = Featurizer(spec).tokenizer
    spans = [("one", 0.08, 0.32), ("six", 0.48, 0.72)]
    alignment = flat_alignment(spans, tokenizer, 24, spec.frame_s)
    assert tokenizer.decode(tokenizer.collapse(alignment.tolist())) == "one six"
    assert not alignment[:2].any()
    assert not alignment[18:].any()
    assert alignment[2:8].all()
    assert alignment[12:18].all()


def test_damaged_checkpoints_are_refused(unbroken, tmp_path):
    with pytest.raises(CheckpointError, match="found no file"):
        load_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    with pytest.raises(CheckpointError, match="carries no model spec"):
        load_checkpoint(tmp_path / "bare.ckpt")
    raw = torch.load(unbroken / "last.ckpt", weights_only=True)
    raw["state_dict"].popitem()
    torch.save(raw, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_checkpoint(tmp_path / "other.ckpt")
    raw[KEY]["format"] = 3
    torch.save(raw, tmp_path / "newer.ckpt")
    with pytest.raises(CheckpointError, match="format 3 is newer than 2"):
        load_checkpoint(tmp_path / "newer.ckpt")


def test_checkpoints_of_the_flat_recipe_are_read(unbroken, tmp_path):
    """Format 1: Lightning's, with a recipe without sections and features without a kind."""
    raw = torch.load(unbroken / "last.ckpt", weights_only=True)
    spec = msgspec.json.decode(raw[KEY]["spec"])
    del spec["features"]["kind"]
    config = {
        "encoder": spec["encoder"],
        "head": spec["head"],
        "augment": {"speeds": [1.0], "clips_joined": [1, 2]},
        "updates": 8,
        "batch_size": 4,
        "learning_rate": 4e-3,
        "warmup": 0.05,
        "weight_decay": 0.1,
        "logit_penalty": 1e-3,
        "dropout": 0.1,
        "gradient_clip": 1.0,
        "ctc_weight": 0.8,
        "stop_gradient": True,
        "flat_start": 0.25,
        "all_masked": 0.5,
        "valid_every": 4,
        "seed": 7,
    }
    old = {
        "state_dict": raw["state_dict"],
        "global_step": 8,
        KEY: {
            "spec": msgspec.json.encode(spec).decode(),
            "config": msgspec.json.encode(config).decode(),
            "origin": '{"data": "two voices", "n_clips": 3}',
        },
    }
    torch.save(old, tmp_path / "old.ckpt")
    loaded = load_checkpoint(tmp_path / "old.ckpt")
    assert loaded.spec == load_checkpoint(unbroken / "last.ckpt").spec
    assert (loaded.recipe.run.seed, loaded.recipe.batches.size, loaded.updates) == (7, 4, 8)
    assert loaded.recipe.task == RECIPE.task
    del config["head"]
    old[KEY]["config"] = msgspec.json.encode(config).decode()
    torch.save(old, tmp_path / "older.ckpt")
    with pytest.raises(CheckpointError, match="format 1 without 'head'"):
        load_checkpoint(tmp_path / "older.ckpt")


def test_resuming_another_recipe_is_refused(unbroken, clips):
    other = changed("optimizer.learning_rate=1e-9", "augment.mel_warp=0")
    message = r"differs .* in augment.mel_warp, optimizer.learning_rate;"
    with pytest.raises(CheckpointError, match=message):
        train(*clips, other, unbroken, data_name="two voices", resume=True, progress=False)
    with pytest.raises(CheckpointError, match=r"differs .* in data;"):
        train(*clips, RECIPE, unbroken, data_name="others", resume=True, progress=False)
    fewer = changed("run.updates=4")
    with pytest.raises(CheckpointError, match=r"run.updates 4, it was begun with 8"):
        train(*clips, fewer, unbroken, data_name="two voices", resume=True, progress=False)


def test_a_run_goes_on_with_more_updates_and_other_workers(unbroken, clips, tmp_path):
    shutil.copytree(unbroken, tmp_path / "more")
    more = changed("run.updates=10", "data.workers=1", "run.valid_every=5", "run.log_every=1")
    path = train(
        *clips, more, tmp_path / "more", data_name="two voices", resume=True, progress=False
    )
    assert load_checkpoint(path).updates == 10
    lines = (tmp_path / "more" / "train.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["update", "8", "9", "10"]


def test_silent_audio_is_refused(clips, tmp_path):
    silent = [Clip(c.record, 0 * c.waveform) for c in clips[0]]
    recipe = changed("augment.quiet=1.0", "augment.room=0.0")
    with pytest.raises(DataError, match="got silence"):
        train(silent, clips[1], recipe, tmp_path, data_name="x", progress=False)


def test_diverging_loss_ends_the_run(clips, tmp_path):
    recipe = changed("optimizer.learning_rate=1e30", "run.max_bad_updates=2")
    with pytest.raises(TrainingError, match="not finite 2 times in a row"):
        train(*clips, recipe, tmp_path, data_name="x", progress=False)


def test_clips_too_short_for_their_texts_are_left_out(clips, tmp_path, caplog):
    long = [
        Clip(msgspec.structs.replace(c.record, text="one " * 99 + c.text), c.waveform)
        for c in clips[0]
    ]
    with pytest.raises(DataError, match=f"none of {len(long)} .*too short for the transcript"):
        train(long, [], RECIPE, tmp_path, data_name="x", progress=False)
    assert caplog.text.count("left out") == 10 + 1  # the first ten by name, and how many there are
    assert f"left out {len(long)} of {len(long)} clips" in caplog.text


def test_training_needs_clips(tmp_path):
    with pytest.raises(DataError, match="at least one training clip"):
        train([], [], RECIPE, tmp_path, data_name="x", progress=False)


@pytest.mark.parametrize("name", ["tcn", "conformer", "attention head"])
def test_every_encoder_and_head_trains_and_comes_back(name, clips, tmp_path):
    encoders = {
        "tcn": TcnSpec(channels=8),
        "conformer": ConformerSpec(d_model=16, n_layers=2, subsampling_channels=2, kernel=3),
    }
    recipe = msgspec.structs.replace(RECIPE, encoder=encoders.get(name, RECIPE.encoder))
    head = ["task.head={mixer='attention', width=8, heads=2}"] if "head" in name else []
    recipe = changed("run.updates=4", *head, recipe=recipe)
    train(*clips, recipe, tmp_path, data_name="two voices", progress=False)
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    assert loaded.spec.encoder == recipe.encoder
    assert loaded.spec.head == recipe.task.head
    assert loaded.updates == 4
    x = torch.randn(1, 64, 40)
    out, _ = loaded.encoder(x, torch.tensor([64]))
    assert loaded.head(out, loaded.head.fully_masked(out)).isfinite().all()


def test_intermediate_branches_are_trained(clips, tmp_path):
    """Self-conditioned CTC from the recipe: what reads the branches learns."""
    encoder = ConformerSpec(
        d_model=16,
        n_layers=2,
        subsampling_channels=2,
        kernel=3,
        intermediate_ctc=(1,),
        self_conditioned=True,
    )
    recipe = msgspec.structs.replace(RECIPE, encoder=encoder)
    weights = []
    for updates in (1, 4):
        out = tmp_path / str(updates)
        few = changed(f"run.updates={updates}", "task.all_masked=0", recipe=recipe)
        train(*clips, few, out, data_name="two voices", progress=False)
        loaded = load_checkpoint(out / "last.ckpt")
        weights.append([loaded.encoder.ctc.bias, loaded.encoder.feedback.weight])
    for early, late in zip(*weights, strict=True):
        assert not torch.equal(early, late)
