"""What happens to samples after generation; today the export to Hugging Face datasets."""
