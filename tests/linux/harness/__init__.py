"""Makes crash dumps of real Linux kernels in known states. See ../README.md."""
