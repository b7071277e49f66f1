"""Teachers, and the pipeline that runs a plan on them exactly once."""
