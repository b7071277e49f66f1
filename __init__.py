"""distdata: decide which teacher samples to buy, buy each once, and prove slice by slice what they gave."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generate.ingest.log import ByproductLog as ByproductLog
    from .generate.ingest.log import log_byproduct as log_byproduct

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `log_byproduct` or `ByproductLog` when it is first asked for: importing the package stays light."""
    if name in ("log_byproduct", "ByproductLog"):
        from .generate.ingest import log

        globals()[name] = found = getattr(log, name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
