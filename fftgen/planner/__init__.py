"""Problem + target -> Plan. Knows the standard library, SymPy and NumPy; no torch, no CUDA."""
