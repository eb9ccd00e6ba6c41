"""Recipes: what is refused and how it is said, and that every shipped one trains."""

from __future__ import annotations

import string
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_imputer.errors import SpecError
from edge_imputer.specs import PRESETS, AttentionSpec, ConformerSpec, PcenSpec, WindowedCrnnSpec
from edge_imputer.train.checkpoint import load_checkpoint
from edge_imputer.train.recipe import (
    BucketedBatches,
    OptimizerSection,
    Recipe,
    make_recipe,
    read_recipe,
)
from edge_imputer.train.recipe_reader import merge, parse_value, shipped_recipes
from edge_imputer.train.tasks import CtcTaskSpec, ImputerTaskSpec, KeywordTaskSpec
from edge_imputer.train.trainer import read_corpus, train
from edge_imputer.train.trainer.optimization import rate_factor

from .training_cases import SIZES, tiny_recipe, write_corpus


def refusal(text: str, tmp_path: Path, *settings: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SpecError) as error:
        read_recipe(path, settings)
    message = str(error.value)
    assert "mine.toml" in message or "--set" in message
    return message.replace(str(path), "mine.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("upadtes = 10", "unknown key upadtes"),
        ("[run]\nupadtes = 10", "unknown key run.upadtes; did you mean updates?"),
        ("[optimzer]\nkind = 'adam'", "unknown key optimzer; did you mean optimizer?"),
        ("[encoder]\nkind='crnn'\nhiden = 3", "unknown key encoder.hiden; did you mean hidden?"),
        (
            "[encoder]\nkind='crnn'\nconv = [{channels = 4}, {chanels = 4}]",
            "unknown key encoder.conv.1.chanels; did you mean channels?",
        ),
        ("[task.head]\nwidht = 3", "unknown key task.head.widht; did you mean width?"),
        ("[run]\na = 1\n[data]\nb = 2", "unknown key run.a"),
        ("[run]\na = 1\n[data]\nb = 2", "unknown key data.b"),
        ("[run]\nupdates = 'many'", "run.updates: expected `int`, got `str` ('many')"),
        ("[run]\nupdates = 1.5", "run.updates: expected `int`, got `float` (1.5)"),
        ("[optimizer]\nbetas = [0.9]", "optimizer.betas: expected `array` of length 2, got 1"),
        ("[task.head]\nschedule = [1, 'x']", "task.head.schedule.1: expected `int`, got `str`"),
        (
            "[run]\nprecision = 'bf61'",
            "run.precision: expected one of auto, 32, bf16, fp16, got 'bf61'; did you mean bf16?",
        ),
        ("[task]\nkind = 'ctcc'", "task.kind: expected one of imputer, ctc, keywords, got 'ctcc'"),
        ("encoder = 'conformr-s'", "encoder.preset: expected one of crnn-20k"),
        ("encoder = 'conformr-s'", "did you mean conformer-s?"),
        ("encoder.preset = ['x']", "encoder.preset: expected one of crnn-20k"),
        ("[run]\nupdates = ", "not TOML"),
        ("extends = 'digit'", "did you mean digits?"),
        ("extends = 'mine.toml'", "extend each other in a circle"),
        ("[run]\nupdates = 0", "run.updates: expected 1 or more, got 0"),
        ("[run]\nema = 1.0", "run.ema: expected a decay"),
        ("[optimizer]\nlearning_rate = 0.0", "optimizer.learning_rate: expected one above 0"),
        ("[optimizer]\nlearning_rate = inf", "optimizer.learning_rate: expected one above 0"),
        ("[optimizer]\nepsilon = -1.0", "optimizer.epsilon: expected one above 0"),
        ("[optimizer]\nweight_decay = inf", "optimizer.weight_decay: expected 0 or more"),
        ("[optimizer]\nwarmup = 1.0", "optimizer.warmup: expected 0 or more and below 1"),
        ("[optimizer]\nschedule = 'steps'", "optimizer.steps: expected pairs"),
        ("[optimizer]\nsteps = [[0.5, 0.1]]", "optimizer.steps: expected pairs"),
        (
            "[optimizer]\nschedule = 'steps'\nsteps = [[0.5, inf]]",
            "optimizer.steps: expected pairs",
        ),
        ("[task]\nlogit_penalty = nan", "task: expected logit_penalty"),
        (
            "[task]\nkind = 'keywords'\nclass_weights = {a = inf}",
            "task: expected class_weights above 0",
        ),
        ("[batches]\nutterance_s = inf", "batches.utterance_s: expected 0 or more"),
        ("[task]\nstop_gradient = false\nctc_weight = 0.4", "task: expected ctc_weight"),
        ("[task]\ndropout = 1.5", "task: expected shares"),
        ("[task.head]\nkernel = 4", "odd kernel"),
        ("[augment]\nspeeds = []", "augment: expected speeds"),
        ("[augment]\nclips_joined = [3, 2]", "augment: expected 1 <= fewest"),
        ("[data]\nvalid_joined = [0, 1]", "data: expected 1 <= fewest"),
        ("[batches]\nshares = {x = 0.7, y = 0.7}", "batches.shares: expected a sum of 1 or less"),
    ],
)
def test_a_recipe_is_refused_by_the_full_path_of_what_is_wrong(tmp_path, text, expected):
    assert expected in refusal(text, tmp_path)


def test_a_recipe_is_read_and_changed_from_the_command_line(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('[run]\nupdates = 7\n[encoder]\nkind = "crnn"\nhidden = 9\n')
    settings = [
        "optimizer.learning_rate=1e-3",
        "run.precision=bf16",  # a string without quotes
        "task.head.schedule=[4, 4]",
        "encoder.conv.1.channels=5",
        "batches.shares={_unknown_ = 0.5}",
        "data.folder=/some/folder, with a comma",
        "optimizer.schedule=constant",
        "augment.speeds=[0.9,1.1]",
    ]
    recipe = read_recipe(path, settings)
    assert (recipe.run.updates, recipe.encoder.hidden) == (7, 9)
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.run.precision == "bf16"
    assert recipe.task.head.schedule == (4, 4)
    assert [layer.channels for layer in recipe.encoder.conv] == [8, 5]
    assert recipe.batches.shares == {"_unknown_": 0.5}
    assert recipe.data.folder == "/some/folder, with a comma"
    assert recipe.augment.speeds == (0.9, 1.1)
    with pytest.raises(SpecError, match="found no file"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("run.updates", "expected --set section.key=value"),
        ("=3", "expected --set section.key=value"),
        ("run.updates.x=3", "unknown key run.updates"),
        ("encoder.conv.7.channels=3", "encoder.conv: expected an index below 2, got '7'"),
        ("encoder.conv.x.channels=3", "encoder.conv: expected an index below 2, got 'x'"),
        ("optimizer.learning_rat=1", "unknown key optimizer.learning_rat; did you mean"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused(setting, expected):
    if setting == "run.updates.x=3":
        expected = "run.updates: expected a table to set 'x' in, got 3600"
    with pytest.raises(SpecError) as error:
        read_recipe("digits", [setting])
    assert expected in str(error.value)


scalars = (
    st.integers(-(2**53), 2**53)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False).map(float)
    | st.text(string.ascii_letters + "-./", min_size=1).filter(
        lambda text: text not in ("true", "false", "inf", "nan", "-inf", "-nan")
    )
)


@given(value=scalars | st.lists(scalars.filter(lambda v: not isinstance(v, str) or "." not in v)))
def test_values_of_settings_are_toml_or_plain_text(value):
    text = ", ".join(_written(v) for v in value) if isinstance(value, list) else _written(value)
    assert parse_value(f"[{text}]" if isinstance(value, list) else text) == value


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_a_preset_can_be_named_and_changed():
    assert read_recipe("digits", ["encoder=conformer-s"]).encoder == PRESETS["conformer-s"]
    changed = read_recipe("digits", ["encoder=conformer-s", "encoder.n_layers=2"]).encoder
    assert changed == msgspec.structs.replace(PRESETS["conformer-s"], n_layers=2)
    made = make_recipe({"encoder": {"preset": "tcn-30k", "subsampling": 3}}).encoder
    assert made == msgspec.structs.replace(PRESETS["tcn-30k"], subsampling=3)


def test_a_table_of_another_kind_replaces_the_whole():
    base = {"encoder": {"kind": "crnn", "hidden": 3}, "run": {"seed": 1, "updates": 2}}
    merged = merge(base, {"encoder": {"kind": "tcn"}, "run": {"seed": 5}})
    assert merged == {"encoder": {"kind": "tcn"}, "run": {"seed": 5, "updates": 2}}
    assert base["run"] == {"seed": 1, "updates": 2}


def test_a_recipe_extends_a_file_beside_it_and_a_shipped_one(tmp_path):
    (tmp_path / "base.toml").write_text('extends = "ctc"\n[run]\nseed = 5\nupdates = 9\n')
    (tmp_path / "mine.toml").write_text('extends = "base.toml"\n[run]\nupdates = 3\n')
    recipe = read_recipe(tmp_path / "mine.toml")
    assert isinstance(recipe.task, CtcTaskSpec)
    assert (recipe.run.seed, recipe.run.updates) == (5, 3)
    assert recipe.encoder == PRESETS["conformer-xs"]


def test_the_digits_recipe_is_the_default_one():
    shipped = msgspec.structs.replace(read_recipe("digits"), description="")
    assert shipped == Recipe()
    assert shipped.run.updates == 3600
    assert shipped.optimizer == OptimizerSection(learning_rate=4e-3, weight_decay=0.1)


def test_shipped_recipes_are_what_they_say():
    recipes = {name: read_recipe(name) for name in shipped_recipes()}
    assert set(recipes) == set(SIZES)
    assert all(recipe.description for recipe in recipes.values())
    wake = recipes["wake-word"]
    assert isinstance(wake.encoder, WindowedCrnnSpec)
    assert wake.encoder == WindowedCrnnSpec()  # 229,090 parameters
    assert wake.features == PcenSpec(centred=True)
    assert (wake.batches.size, wake.augment.snr_db) == (64, (-5.0, 15.0))
    rates = [
        wake.optimizer.learning_rate * rate_factor(wake.optimizer, update, wake.run.updates)
        for update in (0, wake.run.updates - 1)
    ]
    assert rates == pytest.approx([1e-3, 3e-4])
    assert recipes["ctc-selfconditioned"].encoder.self_conditioned
    assert recipes["imputer-dp"].task.loss == "dp"
    assert recipes["imputer-imitation"].task.loss == "imitation"
    assert isinstance(recipes["librispeech-960"].task, ImputerTaskSpec)
    assert isinstance(recipes["librispeech-960"].batches, BucketedBatches)
    assert recipes["librispeech-960"].encoder.self_conditioned
    assert isinstance(recipes["speech-commands-35"].task, KeywordTaskSpec)
    assert len(recipes["speech-commands-12"].task.keywords) == 10


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "tones")


@pytest.mark.parametrize("name", sorted(SIZES))
def test_every_shipped_recipe_trains(name, corpus, tmp_path):
    recipe = tiny_recipe(name)
    data = read_corpus(corpus, recipe.data, recipe.features.sample_rate)
    loaded = load_checkpoint(train(*data, recipe, tmp_path, data_name="tones", progress=False))
    assert (loaded.updates, loaded.recipe) == (2, recipe)
    assert type(loaded.spec.encoder) is type(recipe.encoder)
    assert (tmp_path / "train.csv").read_text().count("\n") == 2
    assert (tmp_path / "valid.csv").read_text().count("\n") == 2


def test_a_recipe_whose_parts_do_not_fit_is_refused_before_it_trains(corpus, tmp_path):
    attention = AttentionSpec(block=3, memory_blocks=2)
    encoder = ConformerSpec(d_model=16, n_layers=1, subsampling_channels=2, attention=attention)
    recipe = msgspec.structs.replace(tiny_recipe("digits"), encoder=encoder)
    data = read_corpus(corpus, recipe.data, recipe.features.sample_rate)
    with pytest.raises(SpecError, match="attention block of 3"):
        train(*data, recipe, tmp_path / "out", data_name="tones", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.2, 1.0, 0.505, 0.01]),
        ({"schedule": "linear", "floor": 0.0}, [0.1, 0.2, 1.0, 0.5, 0.0]),
        ({"schedule": "constant"}, [0.1, 0.2, 1.0, 1.0, 1.0]),
        ({"schedule": "noam"}, [0.1, 0.2, 1.0, (10 / 56) ** 0.5, (10 / 101) ** 0.5]),
        (
            {"schedule": "steps", "steps": ((0.5, 0.1), (0.9, 0.5))},
            [0.1, 0.2, 1.0, 0.1, 0.05],
        ),
    ],
)
def test_the_learning_rate_follows_its_schedule(settings, expected):
    """Updates 0 and 1 of a warm-up of 10, its end, the middle of the rest, and the end."""
    section = OptimizerSection(warmup=0.1, **settings)
    section.check()
    found = [rate_factor(section, update, 100) for update in (0, 1, 9, 55, 100)]
    assert found == pytest.approx(expected)
    absolute = msgspec.structs.replace(section, warmup=0.0, warmup_updates=10)
    assert [rate_factor(absolute, u, 100) for u in (0, 1, 9, 55, 100)] == pytest.approx(expected)
