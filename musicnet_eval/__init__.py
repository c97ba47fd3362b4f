"""Compare deep networks on music: audio → spectrogram → backbone → honest numbers."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from musicnet_eval.predict import load_run as load_run

try:
    __version__ = version("musicnet-eval")
except PackageNotFoundError:  # a source tree that nobody installed
    __version__ = "0+unknown"

__all__ = ["__version__", "load_run"]


def __getattr__(name: str) -> Any:
    """Give `load_run` on first use, so that `import musicnet_eval` stays free of torch."""
    if name == "load_run":
        from musicnet_eval.predict import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
