"""Neural networks and losses: nothing here samples or measures."""
