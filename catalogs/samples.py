"""Read stored samples back, wherever their shard lies."""

from __future__ import annotations

from .errors import DistdataError
from .storage import Storage
from .ustar import ADVICE, parse_sample


def read_stored(storage: Storage, shard: str, offset: int, n_bytes: int) -> dict[str, bytes]:
    """Return the encoded members of the sample that lies `n_bytes` long at `offset` of a stored shard, in their order.

    Contents are not compared with a digest here; `check.damaged_entries` does that.

    Raises:
        DistdataError: the shard is missing, can't be read, is too short, or holds no whole sample at that place.
    """
    address = storage.address(shard)
    try:
        with storage.open(shard) as f:
            f.seek(offset)
            data = f.read(n_bytes)
    except FileNotFoundError:
        raise DistdataError(f"shard {address} is missing. {ADVICE}") from None
    except OSError as e:
        raise DistdataError(f"shard {address} can't be read ({e.strerror or e}). {ADVICE}") from None
    if len(data) < n_bytes:
        raise DistdataError(
            f"shard {address} is too short: wanted {n_bytes:,} bytes from byte {offset:,}, got {len(data):,}. {ADVICE}"
        )
    return parse_sample(data, f"shard {address}", offset)
