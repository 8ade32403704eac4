"""Networks in torch; nothing here knows about Dask."""
