"""Programs of a policy with the policy itself, as functions of named tensors."""

from __future__ import annotations

import onnxruntime
import torch

from policy_export.lowering.onnx import convert

ROWS, STEPS = 3, 4


def inputs_of(step, generator):
    """Return any observations, ``ROWS`` of them."""
    entries = {}
    for key in step.memory.observations:
        spec = step.input_spec[key]
        shape = (ROWS, *spec.shape)
        if spec.dtype == torch.bool:  # a mask, which leaves one choice at least
            entries[key] = torch.randint(2, shape, generator=generator).index_fill_(-1, torch.tensor(0), 1).bool()
        elif spec.dtype == torch.uint8:
            entries[key] = torch.randint(256, shape, dtype=spec.dtype, generator=generator)
        else:
            entries[key] = torch.randn(shape, generator=generator)
    return {name: entries[key] for name, key in step.inputs.items() if key in entries}


def play(step, runs):
    """Yield what several functions make of the same observations, each with a memory of its own."""
    generator = torch.Generator().manual_seed(0)
    feeds = [{name: torch.full_like(tensor, 7) for name, tensor in step.example_inputs(ROWS).items()} for _ in runs]
    for number in range(STEPS):
        observations, outputs = inputs_of(step, generator), []
        for feed, run in zip(feeds, runs, strict=True):
            flags = {"is_init": torch.full((ROWS, 1), number == 0)} if step.states else {}
            found = run(**feed | observations | flags)
            feed |= {name: found[output] for name, output in step.states.items()}
            outputs.append(found)
        yield outputs


def onnx_program(program, step):
    """Return an exported program in ONNX Runtime, as a function of named tensors."""
    facts = {"policy": "zoo", "environment": {"id": "zoo"}, **step.signature.as_dict()}
    model = convert(program, facts, 20)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(**inputs):
        found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(names, found, strict=True)}

    return run
