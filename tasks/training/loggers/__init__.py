"""Log the metrics of a run: to W&B, TensorBoard, CSV, several of them, or nowhere."""
