"""fedsim: federated learning with thousands to millions of simulated clients on one device."""

__version__ = "0.1.0"
