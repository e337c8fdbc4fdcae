"""Arrays of other libraries: DLPack, ``__cuda_array_interface__``, dask, and their streams."""
