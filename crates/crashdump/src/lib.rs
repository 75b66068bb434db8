//! Reads and writes crash dumps of kernels: memory, symbols, types and stacks from the dump alone. Knows nothing of IPIs.
