"""Turn an ONNX program's preprocessing of bytes into one product of integers.

ONNX Runtime's kernels for strided slices, casts and small means take several times as long as the network behind them.
Cropping, converting to grey, resizing and normalising an image is affine in its bytes, and separable into rows and
columns. Here that function is measured on the program itself, whatever operators it was written with, and replaced by
``MatMulInteger``, which reads the bytes as they lie in memory and is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, compose, helper, numpy_helper

Floats = npt.NDArray[np.float64]

# Operators that are affine in their one varying input and look at no learned weights of a network's kind.
AFFINE = {"Add", "Cast", "Concat", "Div", "Gather", "Identity", "MatMul", "Mul", "ReduceMean", "ReduceSum", "Reshape"}
AFFINE |= {"AveragePool", "Resize", "Slice", "Split", "Squeeze", "Sub", "Sum", "Transpose", "Unsqueeze"}
PREFIX = "preprocessing_"  # of the names of what is made anew
WHITE = 255
# Processors without VNNI add two products of 8 bits in 16, so that a weight above 64 could overflow.
MAX_WEIGHT = 64
TOLERANCE = 1e-6  # of the largest output
ROUNDING = 1e-4  # of a weight, which is measured, in shares of the smallest step
CHUNK = 64  # images at a time
MOST_NUMBERS = 50_000_000  # that are measured, of 8 bytes each
LANES = 16  # outputs that one register of a processor holds


@dataclass(frozen=True)
class Separable:
    """``rows @ image[..., channel] @ columns[channel]``, summed over channels, plus ``offset``.

    Attributes:
        rows: ``(h, H)``; each sums to 1.
        columns: ``(C, W, w)``.
        offset: ``(h, w)``.
    """

    rows: Floats
    columns: Floats
    offset: Floats

    def __call__(self, images: npt.NDArray[np.uint8]) -> Floats:
        return np.einsum("ir,brck,kcj->bij", self.rows, images, self.columns, optimize=True) + self.offset


@dataclass(frozen=True)
class Preprocessing:
    """The nodes of a program that depend on nothing but its image, and the one tensor that they make for the others."""

    image: onnx.ValueInfoProto
    nodes: list[onnx.NodeProto]
    output: str


def find_preprocessing(graph: onnx.GraphProto) -> Preprocessing | None:
    """Return the preprocessing of the one image of bytes, if there is one and it ends in one tensor."""
    images = [
        value
        for value in graph.input
        if value.type.tensor_type.elem_type == TensorProto.UINT8
        and len(value.type.tensor_type.shape.dim) == len("BHWC")
    ]
    if len(images) != 1:
        return None
    constants = {initializer.name for initializer in graph.initializer}
    made, nodes, read_elsewhere = {images[0].name}, [], {output.name for output in graph.output}
    for node in graph.node:
        if node.op_type in AFFINE and made.intersection(node.input) and made | constants >= set(node.input):
            nodes.append(node)
            made.update(node.output)
        else:
            read_elsewhere.update(node.input)
    ends = made & read_elsewhere
    return Preprocessing(images[0], nodes, ends.pop()) if len(ends) == 1 and nodes else None


def measure(model: onnx.ModelProto, found: Preprocessing) -> tuple[Separable, list[int]] | None:
    """Return the preprocessing's function, and the shape of one row of its output, if that is a separable image."""
    made = {output for node in found.nodes for output in node.output}
    used = {name for node in found.nodes for name in node.input} - made
    output = helper.make_tensor_value_info(found.output, TensorProto.FLOAT, None)
    constants = [initializer for initializer in model.graph.initializer if initializer.name in used]
    graph = helper.make_graph(found.nodes, "preprocessing", [found.image], [output], constants)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    height, width, channels = (size.dim_value for size in found.image.type.tensor_type.shape.dim[1:])

    def run(images: npt.NDArray[np.uint8]) -> Floats:
        return session.run(None, {found.image.name: images})[0].astype(np.float64)

    black = run(np.zeros((1, height, width, channels), np.uint8))
    shape = list(black.shape[1:])
    if len(shape) < len("hw") or black.size != np.prod(shape[-2:]):
        return None
    offset = black.reshape(shape[-2:])
    if (height + width * channels) * offset.size > MOST_NUMBERS:  # which leaves little to shrink
        return None

    def probe(count: int, *, rows: bool) -> Floats:
        """Return what each row of the image, or each byte of its rows, adds to the output: ``(count, h, w)``."""
        added = []
        for lit in np.array_split(np.arange(count), -(-count // CHUNK)):
            images = np.zeros((len(lit), height, width * channels), np.uint8)
            if rows:
                images[np.arange(len(lit)), lit] = WHITE
            else:
                images[np.arange(len(lit)), :, lit] = WHITE
            added.append(run(images.reshape(-1, height, width, channels)).reshape(-1, *offset.shape) - offset)
        share = np.concatenate(added) / WHITE
        return np.where(np.abs(share) < TOLERANCE * np.abs(share).max(), 0, share)

    rows = probe(height, rows=True).sum(2).T
    rows /= rows.sum(1, keepdims=True)
    columns = probe(width * channels, rows=False).mean(1).reshape(width, channels, -1).transpose(1, 0, 2)
    separable = Separable(rows, columns, offset)
    noise = np.random.default_rng(0).integers(WHITE + 1, size=(8, height, width, channels), dtype=np.uint8)
    expected = run(noise).reshape(-1, *offset.shape)
    same = np.abs(separable(noise) - expected).max() <= TOLERANCE * np.abs(expected).max()
    return (separable, shape) if same else None


def as_integers(columns: Floats) -> tuple[npt.NDArray[np.int8], Floats] | None:
    """Return small whole numbers and a scale for each column, ``integers * scale == columns``, if they exist.

    Args:
        columns: ``(K, n)``.
    """
    largest = np.abs(columns).max(0)
    largest[largest == 0] = 1
    integers, scale = np.zeros(columns.shape, np.int8), np.zeros(columns.shape[1])
    for column, weights in enumerate((columns / largest).T):
        for top in range(1, MAX_WEIGHT + 1):
            whole = np.rint(weights * top)
            if np.abs(whole - weights * top).max() < ROUNDING:
                integers[:, column], scale[column] = whole, largest[column] / top
                break
        else:
            return None
    return integers, scale


def find_means(rows: Floats) -> npt.NDArray[np.int64] | None:
    """Return, for each row of the output, the rows of the image that it is the plain mean of: ``(h, n)``, or None."""
    read = [np.flatnonzero(weights) for weights in rows]
    count = len(read[0])
    means = all(
        len(at) == count and np.allclose(weights[at], 1 / count, rtol=ROUNDING)
        for weights, at in zip(rows, read, strict=True)
    )
    return np.array(read) if means else None


def cut(weights: npt.NDArray[np.int8]) -> tuple[int, npt.NDArray[np.int8]]:
    """Cut a row into pieces of equal size, each of which computes its share of the outputs in the same way.

    With n pieces, one product with a piece's weights takes an n-th of the time, as long as it fills a register.

    Args:
        weights: ``(pixels, colours, channels, outputs)`` of a whole row.

    Returns:
        The first piece's first pixel, and its weights, ``(pixels, colours, channels, outputs)`` of a piece; the whole
        row and its weights if there is only one piece.
    """
    pixels, colours, channels, outputs = weights.shape
    first = weights.any((1, 2)).argmax(0)
    found = [(0, weights)]
    for pieces in (count for count in range(2, outputs + 1) if outputs % count == 0):
        pitch = int(first[outputs // pieces] - first[0])
        start = min(int(first[0]), pixels - pieces * pitch)
        if pitch < 1 or start < 0:
            continue
        window = weights[start : start + pieces * pitch]
        parts = window.reshape(pieces, pitch, colours, channels, pieces, outputs // pieces)
        own = parts[np.arange(pieces), ..., np.arange(pieces), :]
        if (own == own[0]).all() and np.count_nonzero(own) == np.count_nonzero(weights):
            found.append((start, own[0]))
    return min(found, key=lambda piece: -(-piece[1][0, 0].size // LANES))


def write_product(found: Preprocessing, separable: Separable, shape: list[int]) -> onnx.GraphProto | None:
    """Return the preprocessing as a graph around one product of integers, if its weights are integers times a scale."""
    channels = [channel for channel, weights in enumerate(separable.columns) if weights.any()]
    integers = as_integers(np.concatenate(separable.columns[channels], axis=1))
    if integers is None:
        return None
    (weights, scale), (height, width) = integers, shape[-2:]
    means = find_means(separable.rows)
    if means is None:
        lines = np.flatnonzero(separable.rows.any(0))[:, None]
    else:
        lines, scale = means, scale / means.shape[1]
    # Rows of (W, C) lie flat in memory; the weights of a channel look at its bytes alone.
    colours, pixels = separable.columns.shape[:2]
    spread = np.zeros((pixels, colours, len(channels), width), np.int8)
    for place, channel in enumerate(channels):
        spread[:, channel, place] = weights[:, place * width : (place + 1) * width]
    start, piece = cut(spread)
    pieces, size = width // piece.shape[-1], len(piece) * colours
    stop = start + pieces * len(piece)
    constants: dict[str, npt.NDArray[np.generic]] = {
        "rows": np.array([-1, separable.rows.shape[1] * pieces, size]),
        "places": (lines[:, None] * pieces + np.arange(pieces)[:, None]).ravel(),
        "flat": np.array([-1, len(lines), pieces, lines.shape[1] * size]),
        "weights": np.tile(piece.reshape(size, -1), (lines.shape[1], 1)),
        "scale": scale.astype(np.float32).reshape(len(channels), pieces, -1).swapaxes(0, 1).reshape(pieces, -1),
        "offset": separable.offset.astype(np.float32),
        "shape": np.array([-1, *shape]),
    }
    text, last = "", "image"
    if (start, stop) != (0, pixels):
        constants |= {"left": np.array([start]), "right": np.array([stop]), "two": np.array([2])}
        text, last = "cropped = Slice (image, left, right, two)", "cropped"
    text += f"""
        rows_of_pieces = Reshape ({last}, rows)
        window = Gather <axis = 1> (rows_of_pieces, places)
        bytes = Reshape (window, flat)
        sums = MatMulInteger (bytes, weights)
        floats = Cast <to = 1> (sums)
        scaled = Mul (floats, scale)
    """
    last = "scaled"
    if len(channels) > 1:
        constants |= {"planes": np.array([-1, len(lines), pieces, *piece.shape[2:]]), "three": np.array([3])}
        text += """
            channels = Reshape (scaled, planes)
            grey = ReduceSum <keepdims = 0> (channels, three)
        """
        last = "grey"
    if means is None:
        constants |= {
            "lines": np.array([-1, len(lines), width]),
            "mix": separable.rows[:, lines[:, 0]].astype(np.float32),
        }
        text += f"""
            joined = Reshape ({last}, lines)
            resized = MatMul (mix, joined)
        """
        last = "resized"
    else:
        constants["offset"] = constants["offset"].reshape(height, pieces, -1)
    text += f"""
        normalised = Add ({last}, offset)
        output = Reshape (normalised, shape)
    """
    graph = onnx.parser.parse_graph(f"preprocessing (uint8[N,H,W,C] image) => (float[N,C,h,w] output) {{ {text} }}")
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    graph = compose.add_prefix_graph(graph, PREFIX)
    names = {f"{PREFIX}image": found.image.name, f"{PREFIX}output": found.output}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return graph


def use_integer_preprocessing(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the preprocessing of a program by a product of integers.

    The program is returned unchanged if it has no image of bytes, or if the preprocessing is not affine, not separable,
    or has weights that are not small whole numbers times a scale.
    """
    found = find_preprocessing(model.graph)
    measured = None if found is None else measure(model, found)
    product = None if found is None or measured is None else write_product(found, *measured)
    if found is None or product is None:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    rest = [node for node in model.graph.node if node not in found.nodes]
    used = {name for node in rest for name in node.input}
    made = {name for node in found.nodes for name in node.output} - {found.output}
    graph = changed.graph
    for field, kept in (
        (graph.node, [*product.node, *rest]),
        (graph.initializer, [*product.initializer, *(one for one in model.graph.initializer if one.name in used)]),
        (graph.value_info, [value for value in model.graph.value_info if value.name not in made]),
    ):
        del field[:]
        field.extend(kept)
    onnx.checker.check_model(changed, full_check=True)
    return changed
