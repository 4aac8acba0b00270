"""Lightning callbacks: progress, measurements, inspection of the model, checkpoints."""
