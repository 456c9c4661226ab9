"""The plugins keep the contract of their hooks."""

from wan_host.testing.contract import FrameContract, PluginContract


class TestInterpolatePlugin(PluginContract):
    plugin = "interpolate"


class TestUpscalePlugin(PluginContract):
    plugin = "upscale"


class TestInterpolate(FrameContract):
    plugin = "interpolate"


class TestUpscale(FrameContract):
    plugin = "upscale"
