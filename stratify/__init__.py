"""Pure statistics: bands to weights to allocation to K to drawn seeds to a plan."""
