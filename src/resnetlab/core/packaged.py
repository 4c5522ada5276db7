"""The small trained networks in the package: for each a weights file, a model card and some of its test images."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "weights" / "trained"


def packaged_names() -> tuple[str, ...]:
    """Returns the names that `load`, `predict` and `export` take in place of a run, such as "digits"."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.safetensors")))


def packaged_weights(name: object) -> Path | None:
    """Returns the weights file of a packaged network, or None if no network has this name."""
    return _FOLDER / f"{name}.safetensors" if str(name) in packaged_names() else None


def is_packaged(source: object) -> bool:
    """Whether a source names a packaged network; a file or folder with that name takes precedence."""
    return isinstance(source, (str, Path)) and not Path(source).exists() and packaged_weights(source) is not None


def packaged_card(name: str) -> str:
    """Returns the model card of a packaged network, in Markdown."""
    return (_FOLDER / f"{name}.md").read_text(encoding="utf-8")


def packaged_images(name: object) -> Path | None:
    """Returns the file with some test images of a packaged network, or None if no network has this name."""
    weights = packaged_weights(name)
    return None if weights is None else weights.with_suffix(".npz")
