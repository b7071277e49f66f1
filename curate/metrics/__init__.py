"""Metric columns: one small file each, from the members of one sample to a few numbers (see `seed_view`)."""
