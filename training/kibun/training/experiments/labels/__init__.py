"""What given or predicted traits add to acoustics, on any features and labels of the same utterances: linear models
and small nets with their controls, cross-validated."""
