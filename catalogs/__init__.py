"""The bottom layer: configuration, records, files, shards, the DuckDB catalog and what is drawn from it."""
