"""What `kibun doctor` examines outside of this installation: TLS files, ports, clocks, the store of conversations."""
