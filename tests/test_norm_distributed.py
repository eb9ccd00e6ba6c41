"""Batch norm over several processes: what is dealt out to them gives what it gives whole."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from edge_imputer.specs import ConvSpec, CrnnSpec, FeatureSpec
from edge_imputer.train.encoders import CrnnEncoder
from edge_imputer.train.layers.norm import MaskedBatchNorm1d

from .processes import run_ranks

# Utterances of each process: halves, one with more than the other, one with none.
DEALS = {"halves": (3, 3), "unequal": (5, 1), "none": (6, 0)}
LENGTHS = torch.tensor([7, 2, 5, 1, 6, 3])


def norm(dtype: torch.dtype) -> MaskedBatchNorm1d:
    torch.manual_seed(0)
    layer = MaskedBatchNorm1d(4).to(dtype)
    torch.nn.init.uniform_(layer.weight, 0.5, 2)
    torch.nn.init.uniform_(layer.bias, -1, 1)
    return layer


def data(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Utterances with a mean far from 0, and a weight of every output in the loss."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 7, 3, 4, generator=generator, dtype=torch.float64) * 2 + 5
    weight = torch.randn(6, 7, 3, 4, generator=generator, dtype=torch.float64)
    return x.to(dtype), weight.to(dtype)


def train_twice(
    layer: MaskedBatchNorm1d, x: Tensor, weight: Tensor, lengths: Tensor
) -> dict[str, Tensor]:
    """Outputs, gradients and running statistics of two training steps."""
    x = x.clone().requires_grad_()
    for _ in range(2):
        out = layer(x, lengths)
        (weight * out.square()).sum().backward()
    assert x.grad is not None
    named = dict(layer.named_parameters())
    grads = {f"grad {name}": p.grad.clone() for name, p in named.items() if p.grad is not None}
    return {"out": out.detach(), "grad x": x.grad, **grads, **dict(layer.named_buffers())}


CASES = [*((deal, "float64") for deal in DEALS), ("halves", "float32")]


def rank_of_norm(rank: int, port: int, folder: str) -> None:
    """One process of all cases: starting processes takes longer than they do."""
    join(rank, port)
    for deal, dtype in CASES:
        n = DEALS[deal]
        mine = slice(0, n[0]) if rank == 0 else slice(n[0], n[0] + n[1])
        x, weight = data(getattr(torch, dtype))
        result = train_twice(norm(x.dtype), x[mine], weight[mine], LENGTHS[mine])
        torch.save(result, Path(folder) / f"{deal}-{dtype}-{rank}.pt")
    with pytest.raises(ValueError, match="2 frames or more over all processes"):
        norm(torch.float32)(torch.randn(1 - rank, 1, 4))  # one frame, of the first process
    dist.destroy_process_group()


def join(rank: int, port: int) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what every process got."""
    folder = tmp_path_factory.mktemp("norm")
    run_ranks(2, "tests.test_norm_distributed", "rank_of_norm", str(folder))
    return folder


@pytest.mark.parametrize(("deal", "dtype"), CASES)
def test_what_is_dealt_out_equals_the_whole_batch(results: Path, deal: str, dtype: str) -> None:
    x, weight = data(getattr(torch, dtype))
    whole = train_twice(norm(x.dtype), x, weight, LENGTHS)
    ranks = [torch.load(results / f"{deal}-{dtype}-{rank}.pt") for rank in range(2)]
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    for name, expected in whole.items():
        parts = [rank[name] for rank in ranks]
        if name in ("out", "grad x"):
            found = torch.cat(parts)
        elif name.startswith("grad"):
            found = parts[0] + parts[1]  # each process has its own frames' part
        else:  # running statistics: every process has those of all frames
            assert torch.equal(parts[0], parts[1])
            found = parts[0]
        scale = expected.abs().max().clamp(min=1)
        assert (found - expected).abs().max() <= tolerance * scale, name


def test_statistics_are_not_those_of_a_half() -> None:
    """The test above can fail: a half by itself gives something else."""
    x, weight = data(torch.float64)
    whole = train_twice(norm(x.dtype), x, weight, LENGTHS)
    half = train_twice(norm(x.dtype), x[:3], weight[:3], LENGTHS[:3])
    assert (whole["out"][:3] - half["out"]).abs().max() > 0.01
    assert (whole["running_mean"] - half["running_mean"]).abs().max() > 0.01


# ------------------------------------------------------------------ the CRNN's convolutions


def crnn() -> CrnnEncoder:
    torch.manual_seed(0)
    spec = CrnnSpec(conv=(ConvSpec(channels=2), ConvSpec(channels=3)), hidden=4)
    return CrnnEncoder(spec, FeatureSpec(n_mels=8)).double().train()


def encode_padded(
    n_padding: int, fill: float
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Two utterances, with padding of anything: encoder frames, gradients, buffers."""
    encoder = crnn()
    generator = torch.Generator().manual_seed(2)
    content = torch.randn(2, 12, 8, generator=generator, dtype=torch.float64)
    x = torch.full((2, 12 + n_padding, 8), fill, dtype=torch.float64)
    x[0, :12], x[1, :8] = content[0], content[1, :8]
    out, n_frames = encoder(x, torch.tensor([12, 8]))
    assert n_frames.tolist() == [3, 2]
    own = torch.cat([out[0, :3], out[1, :2]])
    own.square().sum().backward()
    grads = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    return own.detach(), grads, dict(encoder.named_buffers())


def test_padding_has_no_part_in_the_crnns_statistics() -> None:
    out, grads, buffers = encode_padded(0, 0.0)
    assert len(grads) == len(dict(crnn().named_parameters()))
    for n_padding, fill in ((20, 0.0), (4, 100.0)):
        out_2, grads_2, buffers_2 = encode_padded(n_padding, fill)
        torch.testing.assert_close(out_2, out, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(grads_2, grads, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(buffers_2, buffers, rtol=1e-10, atol=1e-12)


def test_old_weights_of_the_crnn_still_load() -> None:
    """The norm's names are those of torch's two-dimensional one, which it was before."""
    old = torch.nn.BatchNorm2d(2).state_dict()
    crnn().conv[0].norm.load_state_dict(old)
