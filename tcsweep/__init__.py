"""tcsweep: how much faster does a network run on this device's tensor cores, and if it doesn't, why not?"""

__version__ = "0.1.0"
