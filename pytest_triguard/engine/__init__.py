"""The shared machinery: gradients, estimators, iteration, chunking, devices, draws."""
