"""Lightning callbacks: what a run shows, measures and keeps."""
