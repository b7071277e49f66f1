"""The stages of the loop, joined: the one place besides the command line that knows all of them."""
