"""The thin bundled trainer. Nothing is here yet: it follows once plans and generation stand."""
