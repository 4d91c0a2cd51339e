"""What all benchmarks share: child processes, speech-like sound, timing, reports."""
