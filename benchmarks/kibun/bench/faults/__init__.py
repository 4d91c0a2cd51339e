"""`kibun bench faults`: servers, stores and clients are broken on purpose; nothing may be lost, doubled or changed."""
