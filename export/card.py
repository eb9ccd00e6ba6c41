"""The model card: everything the manifest says, for people. Generated, never edited."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edge_imputer.bundle import GraphRecord, Interval, Manifest, Metrics, TensorRecord
from edge_imputer.claims import at_most, operating_point_lines, rate_number
from edge_imputer.metrics import false_alarm_rate
from edge_imputer.specs import AnyModelSpec, KeywordModelSpec

CARD_NAME = "MODEL_CARD.md"
NOT_MEASURED = "not measured"


def model_card(manifest: Manifest) -> str:
    """Markdown text of the card; depends on nothing but the manifest (and not on its files)."""
    sections = [
        f"# {manifest.name}",
        "Generated from `manifest.json` by edge-imputer; edit neither.",
        _summary(manifest.spec),
        f"## Use\n\n```python\n{_use(manifest.spec)}\n```",
        f"Needs edge-imputer {manifest.minimum_runtime_version} or newer.",
        "## Models\n\n" + _models(manifest.graphs),
        "## Inputs and outputs\n\n" + _tensors(manifest.graphs),
        "## Measured\n\n" + _measured(manifest.metrics, manifest.keyword_threshold),
        "## Operating point\n\n" + _operating_point(manifest),
        "## Training\n\n" + _training(manifest),
        "## Limits\n\n" + _limits(manifest),
        f"## Licence\n\n{manifest.licence}",
    ]
    return "\n\n".join(sections) + "\n"


def _use(spec: AnyModelSpec) -> str:
    if isinstance(spec, KeywordModelSpec):
        thresholds = {spec.keywords[0]: 0.5}
        return (
            "from edge_imputer.spotter import KeywordSpotter\n\n"
            f'spotter = KeywordSpotter("path/of/this/folder", {thresholds})\n'
            'print(spotter.spot("speech.wav"))'
        )
    return (
        "from edge_imputer.recognizer import Recognizer\n\n"
        'recognizer = Recognizer("path/of/this/folder")\n'
        'print(recognizer.transcribe("speech.wav").text)'
    )


def _summary(spec: AnyModelSpec) -> str:
    if isinstance(spec, KeywordModelSpec):
        return _keyword_summary(spec)
    head, features = spec.head, spec.features
    alphabet = " ".join(f"`{c}`" for c in spec.tokens.characters)
    chunk_ms = 1000 * spec.chunk_samples / features.sample_rate
    revised = f", of which {head.revisions} of revision" if head.revisions else ""
    return (
        f"Speech to characters, mono audio of {features.sample_rate} Hz. "
        f"{features.n_mels} log-mel bands every "
        f"{1000 * features.hop_length / features.sample_rate:g} ms, a streaming encoder with a "
        f"frame every {1000 * spec.frame_s:g} ms, and an Imputer head that decodes chunks of "
        f"{chunk_ms:g} ms in {head.n_passes} passes{revised}.\n\n"
        f"Characters: {alphabet}"
    )


def _keyword_summary(spec: KeywordModelSpec) -> str:
    features = spec.features
    hop_ms = 1000 * features.hop_length / features.sample_rate
    kind = features.__struct_config__.tag
    network = "a streaming network"
    if spec.windowed:
        network = f"a network over windows of {spec.input_features * hop_ms:g} ms"
    return (
        f"A detector of {len(spec.keywords)} keywords, mono audio of {features.sample_rate} Hz. "
        f"{features.n_mels} bands ({kind}) every {hop_ms:g} ms, {network} with a score every "
        f"{1000 * spec.frame_s:g} ms, averaged over {spec.smoothing_ms} ms.\n\n"
        f"Keywords: {', '.join(spec.keywords)}"
    )


def _models(graphs: Iterable[GraphRecord]) -> str:
    rows = [
        (
            graph.name,
            f"{graph.macs:,}",
            f"{graph.weight_bytes:,}",
            f"{graph.arena_bytes:,}",
        )
        for graph in graphs
    ]
    return _table(("model", "MACs a call", "weights, bytes", "working memory, bytes"), rows)


def _tensors(graphs: Iterable[GraphRecord]) -> str:
    rows = []
    for graph in graphs:
        for role, records in (("input", graph.inputs), ("output", graph.outputs)):
            first_state = len(records) - graph.n_states
            rows += [
                _tensor_row(graph.name, "state " + role if k >= first_state else role, record)
                for k, record in enumerate(records)
            ]
    head = ("model", "role", "tensor", "shape", "dtype", "scale", "zero point")
    note = "In the float32 files the same tensors are float32, without scale and zero point."
    return f"{_table(head, rows)}\n\n{note}"


def _tensor_row(graph: str, role: str, record: TensorRecord) -> tuple[str, ...]:
    shape = " x ".join(str(n) for n in record.shape)
    quant = record.quant
    scale, zero_point = ("", "") if quant is None else (f"{quant.scale:.6g}", str(quant.zero_point))
    return graph, role, f"`{record.name}`", shape, record.dtype, scale, zero_point


def _measured(metrics: Metrics, threshold: float | None) -> str:
    hours = metrics.negative_hours
    false_alarms = metrics.keyword_fa_per_hour
    rows = [
        ("isolated words exactly right", *_interval(metrics.digit_accuracy)),
        ("word error rate", *_interval(metrics.wer)),
        ("keyword recall", *_interval(metrics.keyword_recall)),
        (
            "keyword false alarms an hour",
            NOT_MEASURED if false_alarms is None else rate_number(false_alarms),
            "",
            "" if hours is None else f"{hours:.2f} h",
        ),
        ("keyword threshold", "not chosen" if threshold is None else f"{threshold:.4f}", "", ""),
    ]
    table = _table(("quantity", "value", "95 % interval", "n"), rows)
    return f"Data: {metrics.data or NOT_MEASURED}\n\n{table}"


def _operating_point(manifest: Manifest) -> str:
    """Thresholds of certain keywords, and what they may be said to do."""
    if manifest.operating_point is None:
        return "None was chosen; `edge-imputer evaluate` chooses and measures one."
    return "\n".join(f"- {_cell(line)}" for line in operating_point_lines(manifest.operating_point))


def _interval(value: Interval | None) -> tuple[str, str, str]:
    if value is None:
        return NOT_MEASURED, "", ""
    return f"{value.value:.2%}", f"{value.low:.2%} to {value.high:.2%}", f"{value.n:,}"


def _training(manifest: Manifest) -> str:
    source = manifest.provenance
    rows = [
        ("data", source.data),
        ("clips", f"{source.n_clips:,}"),
        ("updates", f"{source.updates:,}"),
        ("seed", str(source.seed)),
        ("checkpoint sha256", f"`{source.checkpoint_sha256}`"),
        ("created by", source.created_by),
    ]
    return _table(("", ""), rows)


def _limits(manifest: Manifest) -> str:
    only = "It writes the characters listed above and no others, whatever is said."
    if isinstance(manifest.spec, KeywordModelSpec):
        only = (
            "It knows the keywords listed above and no others; what it was not trained to tell "
            "from them may be taken for one."
        )
    lines = [only]
    metrics = manifest.metrics
    if metrics.data is None:
        lines.append("Nothing was measured yet.")
    else:
        lines.append("The figures hold for the data they name. Other rooms and voices differ.")
    if metrics.negative_hours is not None and metrics.keyword_fa_per_hour == 0:
        bound = false_alarm_rate(0, metrics.negative_hours).upper
        lines.append(
            f"No false alarm in {metrics.negative_hours:.2f} h only says that, at 95 %, there are "
            f"fewer than {at_most(bound)} an hour."
        )
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
