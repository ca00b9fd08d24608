"""What a detector's training data does to it, to look at: spectra, figures, words (docs/spectrum.md)."""
