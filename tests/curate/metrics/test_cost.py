"""Cost: the catalog's seconds, and nothing read."""

from __future__ import annotations

from distdata.curate.metrics import cost
from distdata.curate.metrics.seed_view import SeedView


def test_it_is_what_the_catalog_holds() -> None:
    """The measured seconds of a draw, None where nobody measured them; no member is needed."""
    seed = SeedView(
        seed_id="s", k=0, axes={}, scenario="x", params={}, outcome=None, control_axis=None, control_value=None,
        gpu_s=1.5,
    )  # fmt: skip
    assert cost.columns({}, seed) == {"gpu_s": 1.5}
    unknown = SeedView(
        seed_id="s", k=0, axes={}, scenario="x", params={}, outcome=None, control_axis=None, control_value=None
    )
    assert cost.columns({}, unknown) == {"gpu_s": None}
    assert cost.MEMBERS == ()
