"""Making ONNX graphs of a checkpoint, and what an app's build needs beside them."""
