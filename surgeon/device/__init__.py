"""What runs on the CPU that is measured: needs numpy and onnxruntime only."""
