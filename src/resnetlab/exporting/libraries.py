"""Export to the file format of another library."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from resnetlab.core.errors import UserError
from resnetlab.core.files import file_name, free_name
from resnetlab.core.runs import Run
from resnetlab.exporting.export import TARGETS, Export
from resnetlab.exporting.options import ExportOptions
from resnetlab.models.network import Network
from resnetlab.weights.convert import convert


def write(source: str | Path | Run | Network, *, to: str, out: Path | None = None, options: ExportOptions) -> Export:
    """Writes the weights in the form of another library; see `convert`."""
    if isinstance(source, Network):
        raise UserError(
            f"export to {to} needs a file. Save the network first: resnetlab.save('model.safetensors', model)"
        )
    path = out or _default_path(source, to)
    created = out is None and not path.parent.exists()
    if created:
        path.parent.mkdir()
    try:
        report = convert(source, path, model=options.model, overrides=options.overrides, to=to)
    except BaseException:
        if created:
            with suppress(OSError):
                path.parent.rmdir()
        raise
    return Export(path=path, message=f"{report}\nwritten to {path}")


def _default_path(source: str | Path | Run, form: str) -> Path:
    """Returns RUN/export/FORM.SUFFIX for a run; for a file a new one next to it, for a name one in this folder."""
    if isinstance(source, Run) or Path(source).is_dir():
        run = source if isinstance(source, Run) else Run(source)
        return run.path / "export" / f"{form}{TARGETS[form].suffix}"
    file = Path(source)
    stem = file.with_name(f"{file.stem}-{form}") if file.is_file() else Path(f"{file_name(str(source))}-{form}")
    return free_name(stem.with_name(f"{stem.name}{TARGETS[form].suffix}"))
