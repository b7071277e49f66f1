"""distdata: decide which teacher samples to buy, buy each once, and prove slice by slice what they gave."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generate.ingest.log import log_byproduct as log_byproduct

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `log_byproduct` when it is first asked for, so that importing the package stays light."""
    if name == "log_byproduct":
        from .generate.ingest.log import log_byproduct as found

        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
