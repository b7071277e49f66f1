"""distdata: decide which teacher samples to buy, buy each once, and prove slice by slice what they gave."""

__version__ = "0.1.0"
