"""Graphs as C functions, in one program that reads their inputs and writes their outputs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.memory import tensor_bytes
from edge_imputer.firmware_bridge.placement import Place, Placement, place
from edge_imputer.firmware_bridge.step import Step

from .c_tools import SOURCES, compile_c, run

HEAD = """\
#include <stdio.h>
#include <stdlib.h>
#include "edim_kernels.h"

#define EDIM_TOKEN_OUT_OF_RANGE 1

static void check(int32_t right) {
    if (!right) {
        abort();
    }
}

/* A heap block of exactly n bytes, for a sanitizer to see who leaves it. */
static void *block(size_t n) {
    void *memory = malloc(n);
    check(memory != NULL);
    return memory;
}
"""


_C_TYPES = {"int8": "int8_t", "int16": "int8_t", "int32": "int32_t"}


def separate(graph: Graph) -> Placement:
    """A placement with every input and output in a buffer of its own, states in theirs."""
    inputs = {name: Place(f"in{k}", 0) for k, name in enumerate(graph.inputs)}
    return place(graph, inputs, _outputs(graph))


def compile_graphs(graphs: list[Graph], folder: Path, flags: Iterable[str]) -> Path:
    """A program that runs each graph in turn on the inputs it is given, see `run_graphs`."""
    parts, calls = [HEAD], ""
    for k, graph in enumerate(graphs):
        graph.name = f"graph{k}"
        parts += _functions(graph)
        calls += f"    call_{graph.name}();\n"
    parts.append(f"int main(void) {{\n{calls}    return 0;\n}}\n")
    source = folder / "graphs.c"
    source.write_text("\n".join(parts))
    return compile_c([source, SOURCES / "edim_kernels.c"], folder / "graphs", flags)


def run_graphs(
    program: Path, calls: list[tuple[Graph, list[dict[str, Array]]]]
) -> list[list[dict[str, Array]]]:
    """Outputs by name of every call of every graph; states are inputs like the others."""
    given = b""
    for graph, feeds in calls:
        given += np.int32(len(feeds)).tobytes()
        given += b"".join(feed[name].tobytes() for feed in feeds for name in graph.inputs)
    written = np.frombuffer(run(program, stdin=given), np.int8)
    results, at = [], 0
    for graph, feeds in calls:
        results.append([])
        for _ in feeds:
            outputs = {}
            for name in graph.outputs:
                tensor, n = graph.tensors[name], tensor_bytes(graph, name)
                outputs[name] = written[at : at + n].view(tensor.dtype).reshape(tensor.shape)
                at += n
            results[-1].append(outputs)
    assert at == written.size
    return results


def _outputs(graph: Graph) -> dict[str, Place]:
    """Where outputs lie; the last ones are states, which lie where they did before."""
    places = {name: Place(f"out{k}", 0) for k, name in enumerate(graph.outputs)}
    for before, after in graph.state_pairs:
        places[after] = Place(f"in{graph.inputs.index(before)}", 0)
    return places


def _functions(graph: Graph) -> list[str]:
    """The tables of a graph, its function, and one that calls it as often as it is told."""
    states, plan = dict(graph.state_pairs), separate(graph)
    buffers = {  # C name: type, bytes
        f"in{k}": (_C_TYPES[graph.tensors[name].dtype], tensor_bytes(graph, name))
        for k, name in enumerate(graph.inputs)
    }
    outputs = {at.base: tensor_bytes(graph, name) for name, at in _outputs(graph).items()}
    buffers |= {base: ("int8_t", n) for base, n in outputs.items() if base not in buffers}
    buffers["arena"] = ("int8_t", plan.arena_bytes)
    read = {f"in{k}" for k, name in enumerate(graph.inputs)}
    constant = {f"in{k}" for k, name in enumerate(graph.inputs) if name not in states}
    parameters = ", ".join(
        f"{'const ' if base in constant else ''}{kind} *{base}"
        for base, (kind, _) in buffers.items()
    )
    step = Step(graph, plan, f"static int32_t {graph.name}({parameters})", result="0")
    lines = [f"static void call_{graph.name}(void) {{", "    int32_t n;"]
    lines += ["    check(fread(&n, sizeof n, 1, stdin) == 1);", "    while (n-- > 0) {"]
    lines += [f"        {kind} *{base} = block({n});" for base, (kind, n) in buffers.items()]
    lines += [
        f"        check(fread({k}, 1, {buffers[k][1]}, stdin) == {buffers[k][1]});"
        for k in buffers
        if k in read
    ]
    lines += [f"        check({graph.name}({', '.join(buffers)}) == 0);"]
    lines += [
        f"        check(fwrite({base}, 1, {n}, stdout) == {n});" for base, n in outputs.items()
    ]
    lines += [*(f"        free({base});" for base in buffers), "    }", "}", ""]
    return [*step.tables, step.function(), "\n".join(lines)]
