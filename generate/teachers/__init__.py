"""The teachers that come with distdata; each module is one kind."""
