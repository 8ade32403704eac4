"""A beamtime from first principles."""
