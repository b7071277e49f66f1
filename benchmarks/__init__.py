"""What is timed, against the best rival found: `python -m benchmarks [NAME]`, from the repository's root."""
