"""The stages of ``dvc.yaml`` as a picture: ``make docs`` draws it as Mermaid. ``dvc dag`` draws every instance."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import networkx as nx

from policy_export.config.core_schema import read_yaml


def names(entries: Iterable[Any]) -> set[PurePosixPath]:
    """Return the files that entries of a stage name; an entry with options is a mapping of one key."""
    return {PurePosixPath(name) for entry in entries for name in ([entry] if isinstance(entry, str) else entry)}


def reads(stage: dict[str, Any]) -> set[PurePosixPath]:
    """Return what a stage depends on: files, folders, and files of parameters."""
    files = names(stage.get("deps", ()))
    return files | {
        PurePosixPath(name) for entry in stage.get("params", ()) if isinstance(entry, dict) for name in entry
    }


def writes(stage: dict[str, Any]) -> set[PurePosixPath]:
    return set().union(*(names(stage.get(kind, ())) for kind in ("outs", "metrics", "plots")))


def is_part(one: PurePosixPath, other: PurePosixPath) -> bool:
    """Return whether one of two files or folders is the other, or lies in it."""
    return one.is_relative_to(other) or other.is_relative_to(one)


def stage_graph(path: Path = Path("dvc.yaml")) -> nx.DiGraph:
    """Return the stages, with an edge from each stage to every one that reads what it writes."""
    stages = read_yaml(path.read_text())["stages"]
    graph = nx.DiGraph()
    graph.add_nodes_from(stages)
    graph.add_edges_from(
        (one, other)
        for one, first in stages.items()
        for other, second in stages.items()
        if one != other and any(is_part(written, read) for written in writes(first) for read in reads(second))
    )
    return graph


def draw_stages(path: Path = Path("dvc.yaml")) -> str:
    """Return the graph as Mermaid. An edge is left out where a longer way says the same."""
    graph = nx.transitive_reduction(stage_graph(path))
    order = [stage for stage in stage_graph(path) if graph[stage]]
    sources: dict[str, list[str]] = {}  # which lead to the same stages
    for stage in order:
        sources.setdefault(" & ".join(sorted(graph[stage])), []).append(stage)
    lines = [f"    {' & '.join(ones)} --> {others}" for others, ones in sources.items()]
    return "\n".join(["```mermaid", "flowchart LR", *lines, "```"])
