"""What lies between a client's finished update and the server's mean, where that is more than the mean."""

from fedsim.uplink.receiver import Receiver
from fedsim.uplink.uplink import Uplink

__all__ = ["Receiver", "Uplink"]
