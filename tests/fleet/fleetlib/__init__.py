"""What stands behind `tests/fleet/fleet`: node images, throw-away fleets, and the depot they fetch from."""
