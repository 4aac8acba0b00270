"""Where the figures of a run go: W&B, TensorBoard, CSV, several of them, or nowhere."""
