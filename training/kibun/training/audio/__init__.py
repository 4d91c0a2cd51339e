"""Audio for training: `reading` decodes and resamples recordings, `augment` changes them at random."""
