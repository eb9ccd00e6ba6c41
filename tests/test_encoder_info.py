"""What is said of encoders: presets, layers, work, state, latency, receptive field, benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.cli.benches import run_bench
from edge_imputer.cli.main import main
from edge_imputer.errors import SpecError
from edge_imputer.specs import (
    PRESETS,
    AnyEncoderSpec,
    ConvSpec,
    CrnnSpec,
    FeatureSpec,
    TcnSpec,
    WindowedCnnSpec,
    WindowedSpec,
    preset,
)
from edge_imputer.specs.presets import read_encoder
from edge_imputer.train.encoders import ENCODERS, Encoder, benchmark, build_encoder
from edge_imputer.train.layers.base import State
from edge_imputer.train.layers.depthwise import CausalDepthwiseConv1d
from edge_imputer.train.layers.inspect import EncoderInfo, describe, inspect_encoder

FEATURES = FeatureSpec(n_mels=8)
N_FRAMES = 100  # feature frames a second


class Attention(nn.Module):
    """Scores by matmul, values by einsum."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bij,bjd->bid", x @ x.transpose(1, 2), x)


class FusedAttention(nn.Module):
    """The same by torch's fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class Toy(Encoder):
    """One layer over chunks of 5 feature frames; chunk k comes out with chunk k + `ahead`."""

    receptive_field, step_features = 5, 5

    def __init__(self, layer: nn.Module, d_model: int, ahead: int = 0) -> None:
        super().__init__()
        self.d_model, self.subsampling = d_model, 1
        self.layer, self.ahead = layer, ahead

    def initial_state(self, batch: int = 1) -> State:
        return (torch.zeros(batch, 0, self.d_model),)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        out = self.layer(chunk)
        out = torch.cat([state[0], out[0] if isinstance(out, tuple) else out], 1)
        keep = min(out.shape[1], 5 * self.ahead)
        return out[:, : out.shape[1] - keep], (out[:, out.shape[1] - keep :],)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Transposed(nn.Module):
    """A `torch.nn.Conv1d` on (B, T, C)."""

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return out


D = FEATURES.n_mels
HAND_COUNTED = {  # layer, width of its output, MACs a second
    "linear": (nn.Linear(D, 7), 7, N_FRAMES * D * 7),
    "convolution": (Transposed(D, 7, 3, padding=1), 7, N_FRAMES * 3 * D * 7),
    "depthwise": (Transposed(D, D, 3, padding=1, groups=D), D, N_FRAMES * 3 * D),
    "grouped": (Transposed(D, 4, 3, padding=1, groups=2), 4, N_FRAMES * 3 * D * 4 // 2),
    "ours, depthwise": (CausalDepthwiseConv1d(D, 3), D, N_FRAMES * 3 * D),
    "gru": (nn.GRU(D, 7, batch_first=True), 7, N_FRAMES * 3 * 7 * (D + 7)),
    "attention": (Attention(), D, N_FRAMES * 2 * 5 * D),
    "fused attention": (FusedAttention(), D, N_FRAMES * 2 * 5 * D),
    "norm": (nn.LayerNorm(D), D, 0),
}


@pytest.mark.parametrize("name", HAND_COUNTED)
def test_macs_are_those_counted_by_hand(name):
    layer, d_model, macs = HAND_COUNTED[name]
    info = inspect_encoder(Toy(layer, d_model).eval(), FEATURES)
    assert info.macs_per_s == macs
    assert info.parameters == sum(p.numel() for p in layer.parameters())
    if macs:
        assert sum(row.macs_per_s for row in info.layers if row.name.startswith("layer")) == macs


def test_crnn_figures_are_those_counted_by_hand():
    spec = CrnnSpec(conv=(ConvSpec(channels=3), ConvSpec(channels=4)), gru_layers=2, hidden=6)
    info = describe(spec, FEATURES)
    rows = {row.name: row for row in info.layers}
    assert list(rows) == ["conv.0", "conv.1", "gru.0", "gru.1"]
    assert rows["conv.0"].output == (3, 2, 4)  # channels, frames, bins of a step
    assert [rows[name].macs_per_s for name in rows] == [
        50 * 4 * 3 * 9,  # frames, bins, channels, taps
        25 * 2 * 4 * 9 * 3,
        25 * 3 * 6 * (2 * 4 + 6),
        25 * 3 * 6 * (6 + 6),
    ]
    assert [rows[name].state_bytes for name in rows] == [4 * 8, 4 * 3 * 4, 4 * 6, 4 * 6]
    assert info.receptive_field_ms is None


def test_tcn_figures_are_those_counted_by_hand():
    spec = TcnSpec(channels=6, subsampling=2, stem_kernel=5, kernel=3, stacks=((1, 4),))
    info = describe(spec, FEATURES)
    rows = {row.name: row for row in info.layers}
    block = [50 * 6 * 3, 50 * 6 * 6, 50 * 6 * 6]
    assert [row.macs_per_s for row in info.layers] == [50 * 5 * 8 * 6, *block, *block]
    assert [row.state_bytes for row in info.layers] == [4 * 3 * 8, 4 * 2 * 6, 0, 0, 4 * 8 * 6, 0, 0]
    assert rows["stacks.0.1.depthwise"].parameters == 3 * 6 + 2 * 6
    assert rows["stacks.0.1.depthwise"].output == (1, 6)
    assert info.receptive_field_ms == (5 + 2 * 2 * 5 - 1) * 10 + 25


@pytest.mark.parametrize("name", PRESETS)
def test_rows_add_up_and_the_encoder_stays_as_it_was(name):
    features = FEATURES
    if isinstance(PRESETS[name], WindowedCnnSpec):  # its kernels want more bands
        features = FeatureSpec(n_mels=20)
    encoder = build_encoder(PRESETS[name], features).eval()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    info = inspect_encoder(encoder, features)
    assert info.parameters == sum(p.numel() for p in encoder.parameters())
    if isinstance(PRESETS[name], WindowedSpec):  # a window's frames, and how many are new
        assert info.state_bytes == 4 * 150 * features.n_mels + 8
    else:
        assert info.state_bytes == sum(4 * s.numel() for s in encoder.initial_state())
        assert all(row.name for row in info.layers)  # nothing is left over
    for module in encoder.modules():
        assert not {"step", "forward"} & set(vars(module))
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("subsampling", [1, 2, 3, 4])
def test_latency_of_a_causal_encoder_is_its_frame_and_the_window(subsampling):
    info = describe(TcnSpec(subsampling=subsampling), FEATURES)
    assert info.frame_ms == info.step_ms == 10 * subsampling
    assert info.latency_ms == 10 * (subsampling - 1) + 25


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_latency_counts_chunk_and_lookahead(ahead):
    info = inspect_encoder(Toy(nn.Linear(D, 7), 7, ahead), FEATURES)
    assert info.latency_ms == 10 * (5 * (1 + ahead) - 1) + 25
    assert info.state_bytes == 4 * 5 * ahead * 7  # full, though it starts empty


def test_an_encoder_that_gives_nothing_is_refused():
    with pytest.raises(SpecError, match="within 60 s"):
        inspect_encoder(Toy(nn.Linear(D, D), D, ahead=10_000), FEATURES)


def reach(encoder: Encoder, n_frames: int) -> list[int]:
    """Feature frames, counted back from the last, that the last encoder frame depends on."""
    encoder = encoder.double().eval()
    torch.manual_seed(0)
    x = torch.randn(1, n_frames, FEATURES.n_mels, dtype=torch.float64)
    perturbed = x.repeat(n_frames, 1, 1)
    perturbed[range(n_frames), range(n_frames)] += torch.randn(FEATURES.n_mels).double()
    lengths = torch.full((n_frames,), n_frames)
    with torch.no_grad():
        outs, _ = encoder(perturbed, lengths)
        reference, _ = encoder(x, lengths[:1])
    changed = (outs[:, -1] - reference[0, -1]).abs().amax(1) > 1e-13
    return [n_frames - 1 - k for k in changed.nonzero().flatten().tolist()]


@pytest.mark.parametrize(
    "spec",
    [
        TcnSpec(channels=24, kernel=2, stacks=((1, 2), (2,)), subsampling=4, stem_kernel=6),
        TcnSpec(channels=24, kernel=3, stacks=((1,), (3,)), subsampling=1, stem_kernel=1),
        TcnSpec(channels=24, kernel=3, stacks=((2, 1),), subsampling=3, stem_kernel=3),
        TcnSpec(channels=24, kernel=2, stacks=((1,),), subsampling=2, sum_stacks=False),
    ],
)
def test_receptive_field_is_what_perturbations_reach(spec):
    encoder = build_encoder(spec, FEATURES)
    n_frames = -(-(encoder.receptive_field + 8) // spec.subsampling) * spec.subsampling
    assert max(reach(encoder, n_frames)) + 1 == encoder.receptive_field


def test_a_recurrent_encoder_reaches_back_to_the_start():
    encoder = build_encoder(CrnnSpec(conv=(ConvSpec(channels=4),), hidden=16), FEATURES)
    assert encoder.receptive_field is None
    assert max(reach(encoder, 40)) == 39


# ------------------------------------------------------------------------------ presets


SIZES = {"xs": "100k", "s": "300k", "m": "1000k", "l": "3000k"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_size_of_their_name(name):
    kind, size = name.rsplit("-", 1)
    encoder = build_encoder(preset(name), FeatureSpec())
    assert type(preset(name)).__struct_config__.tag == kind
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(
        1000 * int(SIZES.get(size, size).removesuffix("k")), rel=0.1
    )


def test_unknown_presets_are_refused_with_the_nearest_name():
    with pytest.raises(SpecError, match=r"tcn-10k.* got 'tcn30k'; did you mean tcn-30k\?$"):
        preset("tcn30k")
    with pytest.raises(SpecError, match=r"got 'zzz'$"):
        preset("zzz")


def test_every_kind_of_encoder_is_in_the_table():
    assert set(get_args(AnyEncoderSpec)) == set(ENCODERS)


TOML = """
[encoder]
kind = "tcn"
channels = 4
stacks = [[1, 2], [1]]
[features]
n_mels = 8
"""


def test_encoders_are_read_from_files(tmp_path):
    (tmp_path / "a.toml").write_text(TOML)
    file = read_encoder(tmp_path / "a.toml")
    assert file.encoder == TcnSpec(channels=4, stacks=((1, 2), (1,)))
    assert file.features == FEATURES
    (tmp_path / "a.json").write_bytes(msgspec.json.encode(file))
    assert read_encoder(tmp_path / "a.json") == file


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", TOML.replace("tcn", "tnc"), "tnc"),
        ("a.toml", TOML.replace("channels", "chanels"), "chanels"),
        ("a.toml", TOML.replace("[1, 2]", "[]"), "at least one block"),
        ("a.toml", TOML.replace("n_mels = 8", "n_mels = 0"), "n_mels"),
        ("a.json", "{", "a.json"),
        ("a.yaml", TOML, "toml or .json"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(SpecError, match=message):
        read_encoder(tmp_path / name)


# ------------------------------------------------------------------------------ commands


def run(capsys: pytest.CaptureFixture[str], code: int, *args: object) -> str:
    """Output of a command that ends with `code`: of one that fails, its error."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    assert stop.value.code == code, err
    return err if code else out


def test_info_shows_a_preset(capsys):
    text = run(capsys, 0, "info", "tcn-10k")
    info = describe(preset("tcn-10k"), FeatureSpec())
    for number in (info.parameters, info.macs_per_s, info.state_bytes):
        assert f"{number:,}" in text
    for row in info.layers:
        assert row.name in text
    assert "2,465 ms" in text
    assert "all since the start" in run(capsys, 0, "info", "crnn-20k")


def test_info_reads_a_file_and_prints_json(capsys, tmp_path):
    path = tmp_path / "encoder.toml"
    path.write_text(TOML)
    text = run(capsys, 0, "info", path, "--json")
    info = msgspec.json.decode(text, type=EncoderInfo)
    assert info == describe(read_encoder(path).encoder, FEATURES)


def test_info_refuses_unknown_names(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "did you mean tcn-30k?" in run(capsys, 2, "info", "tcn-31k")
    assert "found no file" in run(capsys, 2, "info", "tcn-30k.toml")
    Path("tcn-30k").mkdir()
    assert "manifest.json" in run(capsys, 2, "info", "./tcn-30k")
    assert "30,464" in run(capsys, 0, "info", "tcn-30k")


def test_bench_encoders_takes_up_every_preset(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    for name in list(PRESETS)[1:-1]:
        monkeypatch.delitem(PRESETS, name)
    monkeypatch.setitem(PRESETS, "tcn-new", TcnSpec(channels=4, subsampling=3))
    figures = run_bench("encoders", None)
    rows = json.loads(json.dumps(figures))["presets"]
    assert [row["name"] for row in rows] == list(PRESETS)
    keys = "name parameters macs_per_s ms_per_s_audio latency_ms state_bytes".split()
    for row in rows:
        assert list(row) == keys
        assert min(row[key] for key in keys[1:]) > 0
    assert "tcn-new" in capsys.readouterr().out
