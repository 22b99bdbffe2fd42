"""What runs on the device: standard library and numpy, Python 3.8 syntax."""
