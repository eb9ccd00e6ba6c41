"""From a grammar to the graph of what it lets one say, and from a path back to its meaning.

Thompson's construction with empty steps, which are then taken out: a word's arc carries the markers
of the empty steps before it. Of several ways to say the same words the first with the best weight
counts.
"""

from __future__ import annotations

from collections.abc import Sequence as Sized
from dataclasses import dataclass, field
from math import log

from ..errors import SpecError
from ..events import Meaning
from .jsgf import Alternatives, Expansion, Grammar, Reference, Repeat, Sequence, Word
from .word_graph import Arc, Marker, WordGraph

LARGEST = 20_000  # arcs, each with a word: some 100,000 letters, and 10 ms a frame


@dataclass
class _Step:
    """From a place of the grammar to another, with a word or without."""

    target: int
    word: str | None
    weight: float
    marker: Marker | None


class _Builder:
    """Places and steps of one grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.steps: list[list[_Step]] = []
        self._open: list[str] = []  # rules that are being expanded

    def place(self) -> int:
        """A new place."""
        self.steps.append([])
        return len(self.steps) - 1

    def step(
        self,
        source: int,
        target: int,
        *,
        word: str | None = None,
        weight: float = 0.0,
        marker: Marker | None = None,
    ) -> None:
        """A step from place to place."""
        self.steps[source].append(_Step(target, word, weight, marker))
        if len(self.steps) > 10 * LARGEST:
            raise too_large(self.grammar.name)

    def expand(self, expansion: Expansion, source: int, target: int) -> None:
        """Everything that an expansion says, from place to place."""
        if isinstance(expansion, Word):
            self.step(source, target, word=expansion.text)
        elif isinstance(expansion, Reference):
            self.rule(expansion.rule, source, target)
        elif isinstance(expansion, Sequence):
            self._sequence(expansion, source, target)
        elif isinstance(expansion, Alternatives):
            best = max(expansion.weights)
            for part, weight in zip(expansion.parts, expansion.weights, strict=True):
                if weight > 0:  # weight 0 is never said
                    begin = self.place()
                    self.step(source, begin, weight=log(weight / best))
                    self.expand(part, begin, target)
        elif isinstance(expansion, Repeat):
            begin, end = self.place(), self.place()
            self.step(source, begin)
            self.expand(expansion.part, begin, end)
            self.step(end, begin)
            self.step(end, target)
            if not expansion.least:
                self.step(source, target)
        else:
            end = self.place()
            self.expand(expansion.part, source, end)
            self.step(end, target, marker=Marker("tag", expansion.tag))

    def _sequence(self, expansion: Sequence, source: int, target: int) -> None:
        """One part after the other, the last one straight to the end: what phrases end in is one
        place, so that nothing that follows them is written out once a phrase."""
        for part in expansion.parts[:-1]:
            following = self.place()
            self.expand(part, source, following)
            source = following
        if expansion.parts:
            self.expand(expansion.parts[-1], source, target)
        else:
            self.step(source, target)

    def rule(self, name: str, source: int, target: int) -> None:
        """What a rule says, between the markers of its name."""
        if name == "NULL":
            return self.step(source, target)
        if name == "VOID":
            return None
        if name not in self.grammar.rules:
            raise SpecError(
                f"grammar {self.grammar.name}: expected a rule among "
                f"{', '.join(sorted(self.grammar.rules))}, got <{name}>, which nothing defines"
            )
        if name in self._open:
            raise SpecError(
                f"grammar {self.grammar.name}: <{name}> is part of itself "
                f"({' -> '.join([*self._open, name])}); repeat with * or + instead"
            )
        self._open.append(name)
        begin, end = self.place(), self.place()
        self.step(source, begin, marker=Marker("begin", name))
        self.expand(self.grammar.rules[name], begin, end)
        self.step(end, target, marker=Marker("end", name))
        self._open.pop()
        return None


def too_large(name: str) -> SpecError:
    """The error of a grammar that cannot be searched in time."""
    return SpecError(
        f"grammar {name}: grows beyond {LARGEST} words when its rules are written out; use fewer "
        "or smaller rules"
    )


def word_graph(grammar: Grammar) -> WordGraph:
    """What a grammar's public rules let one say.

    A weight costs the logarithm of its share of the largest beside it, so that a grammar without
    weights costs nothing.

    Raises
    ------
    SpecError
        A rule is missing or part of itself, the grammar is too large, or says nothing.
    """
    builder = _Builder(grammar)
    start, end = builder.place(), builder.place()
    for name in grammar.public:
        builder.rule(name, start, end)
    return _without_empty_steps(builder, start, end)


@dataclass
class _Reached:
    """A place reached by empty steps."""

    weight: float
    markers: tuple[Marker, ...]


def _without_empty_steps(builder: _Builder, start: int, end: int) -> WordGraph:
    numbers, queue = {start: 0}, [start]
    arcs: list[Arc] = []
    finals: dict[int, tuple[float, tuple[Marker, ...]]] = {}
    for place in queue:
        source = numbers[place]
        for reached, how in _closure(builder, place).items():
            if reached == end:
                finals[source] = how.weight, how.markers
            for step in builder.steps[reached]:
                if step.word is None:
                    continue
                if step.target not in numbers:
                    numbers[step.target] = len(numbers)
                    queue.append(step.target)
                weight = how.weight + step.weight
                if len(arcs) == LARGEST:
                    raise too_large(builder.grammar.name)
                arcs.append(Arc(source, step.word, numbers[step.target], weight, how.markers))
    if not arcs or not finals:
        raise SpecError(f"grammar {builder.grammar.name}: expected words to say, got none")
    return WordGraph(tuple(arcs), finals)


def _closure(builder: _Builder, place: int) -> dict[int, _Reached]:
    """Places within reach of empty steps, each by its best way; the first of equals."""
    found = {place: _Reached(0.0, ())}
    queue = [place]
    for here in queue:  # weights only fall, so that no circle is worth going round
        how = found[here]
        for step in builder.steps[here]:
            if step.word is not None:
                continue
            weight = how.weight + step.weight
            if step.target in found and found[step.target].weight >= weight:
                continue
            marker = () if step.marker is None else (step.marker,)
            found[step.target] = _Reached(weight, how.markers + marker)
            queue.append(step.target)
    return found


@dataclass
class _Open:
    name: str
    words: list[str] = field(default_factory=list)


def meaning(graph: WordGraph, arcs: Sized[int]) -> Meaning:
    """What a path through the graph, by the numbers of its arcs, means.

    A path that has not come to an end of the graph has rules that are still open; they count with
    the words they have so far.
    """
    uses: list[_Open] = []
    under_way: list[_Open] = []
    tags: list[str] = []

    def take(markers: tuple[Marker, ...]) -> None:
        for marker in markers:
            if marker.kind == "tag":
                tags.append(marker.text)
            elif marker.kind == "end":
                under_way.pop()
            else:
                under_way.append(_Open(marker.text))
                uses.append(under_way[-1])

    state = 0
    for number in arcs:
        arc = graph.arcs[number]
        take(arc.markers)
        for use in under_way:
            use.words.append(arc.word)
        state = arc.target
    if state in graph.finals:
        take(graph.finals[state][1])
    return Meaning(tuple((use.name, " ".join(use.words)) for use in uses), tuple(tags))
