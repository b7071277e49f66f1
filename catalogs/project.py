"""A project on disk: where each kind of file is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .config import CONFIG_NAME, Config, load_config
from .storage import Storage


@dataclass(frozen=True)
class Project:
    """The folder of one distdata.toml and everything that belongs to it."""

    root: Path
    config: Config
    catalog_name: str = "catalog.duckdb"

    @classmethod
    def open(cls, root: Path) -> Project:
        """Read the project in the folder `root`; raises DistdataError when its distdata.toml is not right."""
        root = root.resolve()
        return cls(root, load_config(root / CONFIG_NAME))

    @property
    def catalog_path(self) -> Path:
        """The DuckDB file: rebuildable from everything below."""
        return self.root / self.catalog_name

    @property
    def events_dir(self) -> Path:
        """Imports, cell definitions, plans and compactions: written once, never changed."""
        return self.root / "events"

    @property
    def plans_dir(self) -> Path:
        """One folder per plan."""
        return self.root / "plans"

    @property
    def spool_dir(self) -> Path:
        """Answers that are paid for and not yet committed, and the locks of running units."""
        return self.root / "spool"

    @property
    def snapshots_dir(self) -> Path:
        """One folder per snapshot."""
        return self.root / "snapshots"

    @property
    def students_dir(self) -> Path:
        """One folder per trained student."""
        return self.root / "students"

    @cached_property
    def storage(self) -> Storage:
        """Where shards and manifests go."""
        return Storage(self.config.project.storage, self.root, self.spool_dir / "build")
