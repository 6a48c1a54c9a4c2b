"""Zero-order gradient estimators: gradients of what cannot be differentiated."""
