"""wan-host-enhance-video: two frame processors, each a plugin of its own: ``interpolate`` and ``upscale``."""
