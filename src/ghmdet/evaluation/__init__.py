"""What needs detections and annotations but no network: scores, mistakes, hardest examples."""
