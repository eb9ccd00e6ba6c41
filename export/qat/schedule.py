"""In which order a graph's operations run over whole sequences: all frames at once where possible.

A state that only keeps the last rows of something, as a convolution that looks back has it, needs
no loop: over a whole sequence its value in every step is known once that something is. What is
left are loops, such as a GRU's, each as small as it can be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..graph import Graph, Op


@dataclass(frozen=True)
class Delay:
    """A state that holds the last `size` rows, along `axis`, of all that was `added` so far."""

    state: str
    added: str
    axis: int
    size: int


@dataclass(frozen=True)
class Loop:
    """Operations that run step after step, and the states among them with their successors.

    `outside` are what they read of the rest, `outputs` what the rest reads of them.
    """

    ops: tuple[Op, ...]
    states: tuple[tuple[str, str], ...]
    outside: tuple[str, ...]
    outputs: tuple[str, ...]


Item = Op | Delay | Loop


def make_schedule(graph: Graph) -> list[Item]:
    """What to run, in order, over whole sequences of calls of a streaming graph."""
    delays = {
        state: found for state, after in graph.state_pairs if (found := _delay(graph, state, after))
    }
    while True:
        loops = _loops(graph, delays)
        inside = {name for members in loops for name in members} & set(delays)
        if not inside:
            return _ordered(graph, delays, loops)
        for state in inside:  # what it keeps depends on itself
            del delays[state]


def _delay(graph: Graph, state: str, after: str) -> Delay | None:
    """A state as a delay, if ``after`` is the end of a concatenation of it and something."""
    made = {op.output: op for op in graph.ops}
    cut = made.get(after)
    joined = made.get(cut.inputs[0]) if cut is not None and cut.kind == "slice" else None
    if cut is None or joined is None or joined.kind != "concat":
        return None
    axis, size = joined.attrs["axis"], graph.tensors[state].shape
    whole = graph.tensors[joined.output].shape
    begin = tuple(whole[k] - size[k] if k == axis else 0 for k in range(len(whole)))
    if joined.inputs[0] != state or len(joined.inputs) != 2 or cut.attrs["begin"] != begin:
        return None
    return Delay(state, joined.inputs[1], axis, size[axis])


def _loops(graph: Graph, delays: dict[str, Delay]) -> list[set[str]]:
    """Tensors that depend on themselves a step before, in groups that depend on each other."""
    followers: dict[str, set[str]] = {name: set() for name in graph.tensors}
    for op in graph.ops:
        for name in op.inputs:
            followers[name].add(op.output)
    for state, after in graph.state_pairs:
        followers[delays[state].added if state in delays else after].add(state)
    leaders: dict[str, set[str]] = {name: set() for name in graph.tensors}
    for name, those in followers.items():
        for follower in those:
            leaders[follower].add(name)
    found: list[set[str]] = []
    for state, _ in graph.state_pairs:
        if state not in delays and not any(state in members for members in found):
            found.append(_reached(followers, state) & _reached(leaders, state))
    return [members for members in found if members]


def _reached(edges: dict[str, set[str]], start: str) -> set[str]:
    """All that can be reached from a tensor; itself only if it can come back."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = edges[waiting.pop()] - reached
        reached |= new
        waiting.extend(new)
    return reached


def _ordered(graph: Graph, delays: dict[str, Delay], loops: list[set[str]]) -> list[Item]:
    """Delays, loops and what is left, each after all that it reads."""
    looped = {name for members in loops for name in members}
    waiting: list[Item] = [
        *delays.values(),
        *(_loop(graph, members) for members in loops),
        *(op for op in graph.ops if op.output not in looped),
    ]
    known = {name for name, tensor in graph.tensors.items() if tensor.data is not None}
    known |= set(graph.inputs[: len(graph.inputs) - graph.n_states])
    order: list[Item] = []
    while waiting:
        later: list[Item] = []
        for item in waiting:
            reads, makes = _reads_and_makes(item)
            if known.issuperset(reads):
                order.append(item)
                known.update(makes)
            else:
                later.append(item)
        assert len(later) < len(waiting), "a graph in which nothing can come first"
        waiting = later
    return order


def _reads_and_makes(item: Item) -> tuple[Iterable[str], Iterable[str]]:
    if isinstance(item, Delay):
        return (item.added,), (item.state,)
    if isinstance(item, Loop):
        return item.outside, item.outputs
    return item.inputs, (item.output,)


def _loop(graph: Graph, members: set[str]) -> Loop:
    ops = tuple(op for op in graph.ops if op.output in members)
    states = tuple((state, after) for state, after in graph.state_pairs if state in members)
    read = dict.fromkeys(name for op in ops for name in op.inputs)
    elsewhere = {name for op in graph.ops if op.output not in members for name in op.inputs}
    elsewhere |= set(graph.outputs)
    return Loop(
        ops,
        states,
        tuple(name for name in read if name not in members),
        tuple(name for name in sorted(members) if name in elsewhere),
    )
