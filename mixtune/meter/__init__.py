"""The clock: who may use a device, quiet windows, and what is known of step times; knows nothing of training."""
