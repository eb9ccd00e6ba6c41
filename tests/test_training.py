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
from edge_imputer.errors import CheckpointError, DataError, SpecError
from edge_imputer.specs import (
    AttentionSpec,
    ConformerSpec,
    ConvSpec,
    CrnnSpec,
    ImputerSpec,
    TcnSpec,
)
from edge_imputer.train.checkpoint import load_checkpoint
from edge_imputer.train.config import TrainConfig, read_config
from edge_imputer.train.data import (
    AugmentSpec,
    Clip,
    Featurizer,
    flat_alignment,
    load_clips,
    read_manifest,
)
from edge_imputer.train.trainer import train

DIGITS = Path(train_package.__file__).parent / "digits"
CONFIG = TrainConfig(
    encoder=CrnnSpec(conv=(ConvSpec(channels=4), ConvSpec(channels=4)), hidden=12),
    head=ImputerSpec(width=8),
    augment=AugmentSpec(speeds=(1.0,), clips_joined=(1, 2)),
    updates=8,
    batch_size=4,
    valid_every=4,
    flat_start=0.25,
    all_masked=0.5,
)


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
    train(*clips, CONFIG, out, data_name="two voices", progress=False)
    return out


def test_checkpoint_carries_spec_recipe_and_origin(unbroken, clips):
    loaded = load_checkpoint(unbroken / "last.ckpt")
    assert loaded.spec.encoder == CONFIG.encoder
    assert loaded.spec.head == CONFIG.head
    assert "".join(loaded.spec.tokens.characters) == " efghinorstuvwxz"
    assert loaded.spec.features.std > 0.5  # measured on the clips, not the default
    assert loaded.config == CONFIG
    assert (loaded.origin.data, loaded.origin.n_clips) == ("two voices", len(clips[0]))
    assert loaded.updates == CONFIG.updates
    assert not loaded.encoder.training


def test_resumed_run_is_the_unbroken_one(unbroken, clips, tmp_path):
    class Stop(Exception):
        pass

    out = tmp_path / "resumed"
    out.mkdir()
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
            train(*clips, CONFIG, out, data_name="two voices", progress=False)
    assert load_checkpoint(out / "last.ckpt").updates == 4
    train(*clips, CONFIG, out, data_name="two voices", resume=True, progress=False)
    resumed = load_checkpoint(out / "last.ckpt")
    assert resumed.updates == CONFIG.updates
    expected = load_checkpoint(unbroken / "last.ckpt").module.state_dict()
    for name, value in resumed.module.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_training_lowers_the_loss(clips, tmp_path):
    """Both losses on one fixed batch, before and after eighty updates."""
    from edge_imputer.train.data import fixed_batches
    from edge_imputer.train.module import ImputerModule

    config = msgspec.structs.replace(CONFIG, updates=80, batch_size=8, valid_every=80)
    path = train(*clips, config, tmp_path, data_name="x", progress=False)
    trained = load_checkpoint(path)
    torch.manual_seed(config.seed)
    fresh = ImputerModule(trained.spec, config).eval()
    batch = fixed_batches(clips[0], Featurizer(trained.spec), 8)[0]

    def losses(module: ImputerModule) -> tuple[float, float]:
        out, frames = module.encoder(batch.features, batch.lengths)
        arguments = (batch.targets, frames, batch.target_lengths)
        ctc = torch.nn.functional.ctc_loss(
            module.ctc(out).log_softmax(-1).transpose(0, 1), *arguments
        )
        head = module.head(out, module.head.fully_masked(out)).log_softmax(-1)
        return float(ctc), float(torch.nn.functional.ctc_loss(head.transpose(0, 1), *arguments))

    with torch.no_grad():
        before, after = losses(fresh), losses(trained.module)
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
    shutil.copy(unbroken / "last.ckpt", tmp_path / "other.ckpt")
    raw = torch.load(tmp_path / "other.ckpt", weights_only=True)
    raw["state_dict"].popitem()
    torch.save(raw, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_checkpoint(tmp_path / "other.ckpt")


def test_resuming_another_recipe_is_refused(unbroken, clips):
    changed = msgspec.structs.replace(CONFIG, learning_rate=1e-9)
    with pytest.raises(CheckpointError, match=r"differs .* in learning_rate;"):
        train(*clips, changed, unbroken, data_name="two voices", resume=True, progress=False)
    with pytest.raises(CheckpointError, match=r"differs .* in data;"):
        train(*clips, CONFIG, unbroken, data_name="others", resume=True, progress=False)


def test_silent_audio_is_refused(clips, tmp_path):
    silent = [Clip(c.record, 0 * c.waveform) for c in clips[0]]
    quiet = msgspec.structs.replace(CONFIG.augment, quiet=1.0, room=0.0)
    config = msgspec.structs.replace(CONFIG, augment=quiet)
    with pytest.raises(DataError, match="got silence"):
        train(silent, clips[1], config, tmp_path, data_name="x", progress=False)


def test_diverging_loss_stops_the_run(clips, tmp_path):
    config = msgspec.structs.replace(CONFIG, learning_rate=1e30)
    with pytest.raises(DataError, match="no longer finite at update"):
        train(*clips, config, tmp_path, data_name="x", progress=False)


def test_clips_too_short_for_their_texts_are_left_out(clips, tmp_path, caplog):
    long = [
        Clip(msgspec.structs.replace(c.record, text="one " * 99 + c.text), c.waveform)
        for c in clips[0]
    ]
    with pytest.raises(DataError, match="long enough for its transcript"):
        train(long, [], CONFIG, tmp_path, data_name="x", progress=False)
    assert caplog.text.count("left out") == len(long)


def test_training_needs_clips(tmp_path):
    with pytest.raises(DataError, match="at least one training clip"):
        train([], [], CONFIG, tmp_path, data_name="x", progress=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("updates = 0", "updates"),
        ("upadtes = 10", "upadtes"),
        ("stop_gradient = false\nctc_weight = 0.4", "ctc_weight"),
        ("updates = ", "recipe.toml"),
        ("dropout = 1.5", "dropout"),
        ("[augment]\nspeeds = []", "speeds"),
        ("[augment]\nclips_joined = [3, 2]", "clips_joined"),
        ("[head]\nkernel = 4", "odd kernel"),
    ],
)
def test_recipe_errors_name_the_key(tmp_path, text, message):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(SpecError, match=message):
        read_config(path)


def test_recipe_is_read(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('updates = 7\n[encoder]\nkind = "crnn"\nhidden = 9\n')
    config = read_config(path)
    assert (config.updates, config.encoder.hidden) == (7, 9)
    with pytest.raises(SpecError, match="found no file"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize("name", ["tcn", "conformer", "attention head"])
def test_every_encoder_and_head_trains_and_comes_back(name, clips, tmp_path):
    encoders = {
        "tcn": TcnSpec(channels=8),
        "conformer": ConformerSpec(d_model=16, n_layers=2, subsampling_channels=2, kernel=3),
    }
    head = ImputerSpec(mixer="attention", width=8, heads=2) if "head" in name else CONFIG.head
    config = msgspec.structs.replace(
        CONFIG, encoder=encoders.get(name, CONFIG.encoder), head=head, updates=4
    )
    train(*clips, config, tmp_path, data_name="two voices", progress=False)
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    assert loaded.spec.encoder == config.encoder
    assert loaded.updates == 4
    x = torch.randn(1, 64, 40)
    out, _ = loaded.encoder(x, torch.tensor([64]))
    assert loaded.head(out, loaded.head.fully_masked(out)).isfinite().all()


def test_intermediate_branches_are_trained(clips, tmp_path):
    """Self-conditioned CTC from the recipe: what reads the branches learns."""
    tokens = len({c for clip in clips[0] for c in clip.text} | {" "}) + 1
    encoder = ConformerSpec(
        d_model=16,
        n_layers=2,
        subsampling_channels=2,
        kernel=3,
        intermediate_ctc=(1,),
        self_conditioned=True,
        n_tokens=tokens,
    )
    config = msgspec.structs.replace(CONFIG, encoder=encoder, updates=4, all_masked=0.0)
    weights = []
    for updates in (1, 4):
        out = tmp_path / str(updates)
        recipe = msgspec.structs.replace(config, updates=updates)
        train(*clips, recipe, out, data_name="two voices", progress=False)
        loaded = load_checkpoint(out / "last.ckpt")
        weights.append([loaded.encoder.ctc.bias, loaded.encoder.feedback.weight])
    for early, late in zip(*weights, strict=True):
        assert not torch.equal(early, late)


def test_a_recipe_whose_parts_do_not_fit_is_refused_before_it_trains():
    attention = AttentionSpec(block=3, memory_blocks=2)
    recipe = msgspec.structs.replace(CONFIG, encoder=ConformerSpec(attention=attention))
    with pytest.raises(SpecError, match="attention block of 3"):
        recipe.check()
