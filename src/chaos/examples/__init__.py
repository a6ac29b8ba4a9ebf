"""Training scripts to start from. Each runs alone as plain PyTorch, and under `chaos run` with others."""
