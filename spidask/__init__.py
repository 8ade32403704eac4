"""Single hits of X-ray free-electron laser beamtimes, selected on a Dask cluster."""
