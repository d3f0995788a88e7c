"""Back ends: a runtime, the programs that it runs, and how they are loaded and inspected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from policy_export.device.arrays import Run

if TYPE_CHECKING:
    import torch

    from policy_export.localise.case import Case
    from policy_export.localise.compare import Location


class Settings(NamedTuple):
    """Settings for running a program.

    Attributes:
        threads: cores of its runtime.
        onnx_session: of ONNX Runtime, as the manifest has them.
        explores: whether the program draws random numbers; then they must be different after every load.
    """

    threads: int
    onnx_session: Mapping[str, Any] = {}
    explores: bool = False


@dataclass(frozen=True)
class Backend:
    """One runtime.

    Attributes:
        name: in ``programs`` of a profile, in reports and in tables.
        file: of the deterministic program, in the model folder.
        content: the manifest's description of the files.
        load: opens a program as a function of named arrays; raises :class:`UserError` if it cannot.
        inspect: finds the first tensor of the program that differs from the policy's.
        run_by: libraries whose versions decide how it runs.
        random_file: of the program that explores; none if the runtime has none.
        owns_file: whether the program is its own; otherwise another back end makes the file.
        folder: of the model folder, with all files of the back end, if it has one.
        other_files: the manifest's descriptions of the other files in that folder, by their names.
        required: whether all other programs are made from this one, so that every policy needs it.
        default: whether policies have it unless they say otherwise.
        refuse: raises :class:`UserError` where it cannot have a program, in seconds, before anything is trained; given
            the deterministic program and its inputs (``name``, ``dtype``, ``shape``). None if it is not tried.
        on_device: whether the player runs it, without PyTorch.
        batches: whether it is timed in batches of all sizes.
        told: reads what one of its files says of itself, such as ``policy`` and ``inputs``; none if it makes no files.
    """

    name: str
    file: str
    content: str
    load: Callable[[Path, Settings], Run]
    inspect: Callable[[Case, Path], Location]
    run_by: tuple[str, ...]
    random_file: str | None = None
    owns_file: bool = True
    folder: str | None = None
    other_files: Mapping[str, str] = field(default_factory=dict)
    required: bool = False
    default: bool = True
    refuse: Callable[[torch.export.ExportedProgram, Sequence[Mapping[str, Any]]], None] | None = None
    on_device: bool = False
    batches: bool = False
    told: Callable[[Path], Mapping[str, Any] | None] | None = None

    @property
    def suffix(self) -> str:
        """Return the ending that identifies its files: ``.aoti.pt2`` of ``policy.aoti.pt2``."""
        return "".join(Path(self.file).suffixes)

    @property
    def outputs(self) -> dict[str, str]:
        """Return the files that it makes outside of its folder, with a description of each."""
        if not self.owns_file or self.folder is not None:
            return {}
        kinds = {self.file: "DETERMINISTIC"} | ({self.random_file: "RANDOM"} if self.random_file else {})
        return {file: self.content.format(exploration=kind) for file, kind in kinds.items()}
