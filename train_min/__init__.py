"""The thin bundled trainer: recipes, losses, loader, loop, checkpoints, and the student as a teacher."""
