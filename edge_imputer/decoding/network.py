"""A word graph spelt out: nodes that stand for tokens, which a CTC path walks through.

A node is a token at a place: at node v the path has just said ``label[v]``. So all ways into a node
end in one token, and the CTC rule, that equal tokens need a blank between them, is a property of an
arc. Words that leave a state of the word graph together share their first letters (a prefix tree);
between words is one node with the token of the space, for every state of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import SpecError
from ..specs import TokenSpec
from ..tokens import Tokenizer
from .word_graph import WordGraph

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

START = 0
NOTHING = -1


@dataclass(frozen=True)
class Network:
    """N nodes, A arcs sorted by their target. Node 0 is the start, where only blanks are said.

    A path gives units (words, or single tokens): a unit begins with a node of `begins`, and is
    over on an arc with an `output`, or at a final node with one.

    Attributes
    ----------
    label : int64, (N,)
        Token of each node; the start's is the blank.
    source, target : int64, (A,)
    weight : float64, (A,)
    output : int64, (A,)
        Which unit is over before the arc; `NOTHING` if none is.
    begins : bool, (N,)
    final : float64, (N,)
        Weight of ending here; -inf where no path may end.
    final_output : int64, (N,)
    n_tokens : int64, (units,)
        Tokens of each unit.
    blank_id : int
    """

    label: Int64
    source: Int64
    target: Int64
    weight: Float64
    output: Int64
    begins: Bool
    final: Float64
    final_output: Int64
    n_tokens: Int64
    blank_id: int


class NetworkBuilder:
    """Collects nodes and arcs, and sorts them into a `Network`."""

    def __init__(self, blank_id: int) -> None:
        self._blank_id = blank_id
        self._labels = [blank_id]
        self._begins = [False]
        self._arcs: list[tuple[int, int, float, int]] = []  # target, source, weight, output
        self._finals: dict[int, tuple[float, int]] = {}

    def node(self, label: int, *, begins: bool = False) -> int:
        """A new node; its number."""
        self._labels.append(label)
        self._begins.append(begins)
        return len(self._labels) - 1

    def arc(self, source: int, target: int, weight: float = 0.0, output: int = NOTHING) -> None:
        """A way from node to node."""
        self._arcs.append((target, source, weight, output))

    def end(self, node: int, weight: float = 0.0, output: int = NOTHING) -> None:
        """A path may end here; the better weight counts."""
        if weight > self._finals.get(node, (-np.inf, NOTHING))[0]:
            self._finals[node] = weight, output

    def finish(self, n_tokens: Sequence[int]) -> Network:
        """The network; `n_tokens` of each unit."""
        n = len(self._labels)
        self._arcs.sort(key=lambda arc: arc[0])  # stable: of equal ways the first one is taken
        target, source, weight, output = zip(*self._arcs, strict=True) if self._arcs else [()] * 4
        final, final_output = np.full(n, -np.inf), np.full(n, NOTHING)
        for node, (cost, unit) in self._finals.items():
            final[node], final_output[node] = cost, unit
        return Network(
            label=np.array(self._labels),
            source=np.array(source, np.int64),
            target=np.array(target, np.int64),
            weight=np.array(weight, np.float64),
            output=np.array(output, np.int64),
            begins=np.array(self._begins),
            final=final,
            final_output=final_output,
            n_tokens=np.array(n_tokens, np.int64),
            blank_id=self._blank_id,
        )


def spell_out(graph: WordGraph, tokens: TokenSpec) -> Network:
    """The network of a word graph; its units are the graph's arcs, by their number.

    Raises
    ------
    SpecError
        The graph has no word, or no end.
    TokenError
        A word has a character that the model does not know.
    """
    if not graph.arcs or not graph.finals:
        raise SpecError("expected a word graph with words and an end, got none; nothing matches it")
    tokenizer = Tokenizer(tokens)
    builder = NetworkBuilder(tokens.blank_id)
    space = tokenizer.separator_id
    spelt = [tokenizer.encode(arc.word) for arc in graph.arcs]
    lasts: dict[int, int] = {}  # arc -> node of its word's last token
    firsts: dict[int, list[int]] = {}  # state -> nodes that its words begin with
    leaving: dict[int, list[int]] = {}
    for number, arc in enumerate(graph.arcs):
        leaving.setdefault(arc.source, []).append(number)
    for state, numbers in leaving.items():
        firsts[state] = _prefix_tree(builder, {n: tuple(spelt[n]) for n in numbers}, lasts)
    between: dict[int, int] = {}  # state -> node of the space before it
    if space is not None:
        between = {
            state: builder.node(space) for state in dict.fromkeys(a.target for a in graph.arcs)
        }
        for state, node in between.items():
            for first in firsts.get(state, []):
                builder.arc(node, first)
    for first in firsts.get(START, []):
        builder.arc(START, first)
    for number, arc in enumerate(graph.arcs):
        following = [between[arc.target]] if between else firsts.get(arc.target, [])
        for node in following:
            builder.arc(lasts[number], node, arc.weight, number)
    for state, (weight, _) in graph.finals.items():
        if state == START:
            builder.end(START, weight)
        if state in between:
            builder.end(between[state], weight)
    for number, arc in enumerate(graph.arcs):
        if arc.target in graph.finals:
            builder.end(lasts[number], arc.weight + graph.finals[arc.target][0], number)
    return builder.finish([len(ids) for ids in spelt])


def _prefix_tree(
    builder: NetworkBuilder, spelt: Mapping[int, tuple[int, ...]], lasts: dict[int, int]
) -> list[int]:
    """Nodes of all words that leave a state, by their arcs; those they begin with."""
    tree: dict[tuple[int, ...], int] = {}
    for number, ids in spelt.items():
        for depth, label in enumerate(ids):
            prefix = ids[: depth + 1]
            if prefix in tree:
                continue
            tree[prefix] = builder.node(label, begins=depth == 0)
            if depth:
                builder.arc(tree[prefix[:-1]], tree[prefix])
        lasts[number] = tree[ids]
    return [node for prefix, node in tree.items() if len(prefix) == 1]
