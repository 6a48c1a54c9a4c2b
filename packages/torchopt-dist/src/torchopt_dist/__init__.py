"""Task parallelism for differentiable optimization, on torch's RPC and collectives."""
