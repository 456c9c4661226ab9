"""The recipe of tiny-wan: drawn clips, an autoencoder, a joint T2V and VACE transformer, an exported checkpoint.

Run the stages as modules from the folder above this one (see README.md). None of this is part of the wheel.
"""
